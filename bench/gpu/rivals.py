"""Other libraries' 4-bit layers, where they are installed, and torch's 2:4 matrices. Each is imported when it is made.

bitsandbytes 0.50 (NF4, also with double quantization), torchao (int4, groups of 64), GemLite (int4, groups of 64).
They are checked against the dense weight, loosely: of its product 4 bits leave an error of a tenth.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu.machine import installed
from bench.gpu.shapes import Block
from bench.gpu.subjects import DTYPE, Ready, Stock, Subject, fixed, flop, total_bytes
from bench.gpu.timing import Watch
from kernels.op import relative_error
from quant import METHODS

__all__ = ["Bitsandbytes", "Linear", "rival_subjects"]

LOOSE = 0.25  # relative error of a product with 4-bit weights is about 0.1; a wrong layout gives 1 and more
GROUP = 64


class Rival(Subject):
    """A library that may be absent."""

    level = "rival"
    package = ""

    def lacks(self, device: str) -> str:
        if device != "cuda":
            return "rivals are timed on a GPU"
        return "" if not self.package or installed(self.package)[self.package] else f"{self.package} is not installed"


class Bitsandbytes(Rival):
    """`matmul_4bit`, `dequantize_4bit` and `quantize_4bit`."""

    package = "bitsandbytes"

    def __init__(self, nested: bool) -> None:
        self.nested = nested
        self.method = "nf4-g64-dq" if nested else "nf4-g64"
        self.name = "bitsandbytes-nf4-dq" if nested else "bitsandbytes-nf4"

    def takes(self, block: Block) -> bool:
        return True

    def make(self, block: Block, stock: Stock, watch: Watch) -> Ready:
        library = importlib.import_module("bitsandbytes")
        functions = importlib.import_module("bitsandbytes.functional")
        dense = stock.weight(block.shape)

        def quantize(w: Tensor) -> Any:
            return functions.quantize_4bit(w, blocksize=GROUP, quant_type="nf4", compress_statistics=self.nested)

        codes, state = quantize(dense)
        stored = total_bytes(codes, state.absmax, state.state2.absmax if self.nested else None)
        if block.operation == "quantize":
            sources = [dense.clone() for _ in range(watch.copies(dense.nbytes))]
            calls = [fixed(quantize, w) for w in sources]
            return Ready(calls, dense.nbytes + stored, 0, lambda: (None, None), lambda: "quantize_4bit")
        pairs = [(codes, state), *(quantize(dense) for _ in range(watch.copies(stored) - 1))]
        if block.operation == "dequantize":
            calls = [fixed(functions.dequantize_4bit, c, s) for c, s in pairs]
            check = against(lambda: calls[0](), lambda: dense)
            return Ready(calls, stored + dense.nbytes, 0, check, lambda: "dequantize_4bit")
        xs = stock.inputs(block, len(pairs))
        calls = [fixed(library.matmul_4bit, x, c.t(), s) for x, (c, s) in zip(xs, pairs, strict=True)]
        moved = stored + total_bytes(xs[0]) + block.m * block.shape.n * dense.element_size()
        return Ready(calls, moved, flop(block), product_check(calls[0], xs[0], dense), lambda: "matmul_4bit")


class Linear(Rival):
    """A layer that `build` makes of the dense weight."""

    def __init__(self, name: str, package: str, method: str, build: Callable[[Tensor], Callable[..., Any]]) -> None:
        self.name, self.package, self.method, self.build = name, package, method, build

    def takes(self, block: Block) -> bool:
        return block.operation == "matmul"

    def make(self, block: Block, stock: Stock, watch: Watch) -> Ready:
        dense = stock.weight(block.shape)
        stored = METHODS[self.method].quantize(dense[:GROUP]).nbytes * block.shape.n // GROUP
        if self.method == "prune-2of4":
            dense = stock.kept(block.shape, "2:4", lambda: METHODS[self.method].quantize(dense).dequantize(DTYPE))
        layers = [self.build(dense.clone()) for _ in range(watch.copies(stored))]
        xs = stock.inputs(block, len(layers))
        run = torch.no_grad()
        calls = [fixed(run(layer), x) for layer, x in zip(layers, xs, strict=True)]
        moved = stored + total_bytes(xs[0]) + block.m * block.shape.n * dense.element_size()
        return Ready(calls, moved, flop(block), product_check(calls[0], xs[0], dense), lambda: self.name)


def product_check(call: Callable[[], Any], x: Tensor, dense: Tensor) -> Callable[[], tuple[str | None, float | None]]:
    """A check against the product with the dense weight."""
    return against(lambda: call()[:16], lambda: x[:16].float() @ dense.float().T)


def against(got: Callable[[], Any], want: Callable[[], Any]) -> Callable[[], tuple[str | None, float | None]]:
    def check() -> tuple[str | None, float | None]:
        error = relative_error(got(), want())
        return (None if error <= LOOSE else f"relative error {error:.3g} to the dense weight's result"), error

    return check


def torchao_int4(weight: Tensor) -> Callable[..., Any]:
    """torchao's tiled int4 layer (tinygemm)."""
    quantization = importlib.import_module("torchao.quantization")
    layer = _linear(weight)
    config = quantization.Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
    quantization.quantize_(layer, config)
    return layer


def gemlite_int4(weight: Tensor) -> Callable[..., Any]:
    """GemLite's layer over our symmetric int4 codes."""
    library = importlib.import_module("gemlite.core")
    n, k = weight.shape
    groups = weight.float().view(-1, GROUP)
    scale = groups.abs().amax(1, keepdim=True).clamp_min(1e-8) / 7
    codes = ((groups / scale).round().clamp_(-8, 7) + 8).to(torch.uint8).view(n, k)
    kind = library.DType.BF16
    layer = library.GemLiteLinear(4, GROUP, k, n, input_dtype=kind, output_dtype=kind)
    layer.pack(codes, scale.to(DTYPE), torch.full_like(scale, 8).to(DTYPE), None)
    return lambda x: layer(x)


def torch_two_of_four(weight: Tensor) -> Callable[..., Any]:
    """torch's semi-structured matrix (cuSPARSELt or CUTLASS) of a weight that is 2:4 already."""
    layer = _linear(weight)
    layer.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(layer.weight.detach()), requires_grad=False)
    return layer


def rival_subjects() -> list[Subject]:
    """Every rival, installed or not."""
    return [
        Bitsandbytes(nested=True),
        Bitsandbytes(nested=False),
        Linear("torchao-int4-g64", "torchao", "uniform-int4-g64", torchao_int4),
        Linear("gemlite-int4-g64", "gemlite", "uniform-int4-g64", gemlite_int4),
        Linear("torch-2of4-bf16", "", "prune-2of4", torch_two_of_four),
    ]


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
