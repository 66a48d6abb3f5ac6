"""The formats as a user meets them: a quantized layer, its weight decoded, and a weight being quantized.

Nothing here names a kernel: the layer chooses, and the record says what it chose. A product is checked against the
float64 product with the decoded weight, a quantizer on the GPU against the same quantizer on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.gpu.shapes import Block
from bench.gpu.subjects import DTYPE, Ready, Stock, Subject, fixed, flop
from bench.gpu.timing import Watch
from kernels.op import MULTIPLIED, relative_error
from quant import METHODS, QuantizedLinear, QuantizedTensor
from quant.core import from_config

__all__ = ["LAYERS", "Layer", "close_to", "layer_subjects"]

LAYERS = (
    "nf4-g64-dq",
    "nf4-g64",
    "uniform-int4-g64",
    "uniform-int8-channel",
    "uniform-int3-g64",
    "uniform-int2-g64",
    "prune-2of4",
    "prune-2of4-int4-g64",
    "prune-50",
    "mxfp4",
    "prune-4of8",
    "prune-50-nf4-g64",
    "higgs2-2bit",
    "blocks-50-8x8-int4-g64",
)
CHECKED_ROWS = 16
QUANTIZED_ROWS = 8
SAME_CODES = 1e-2  # a sum in another order may turn the code of one scale by one


class Layer(Subject):
    """A method of `METHODS`."""

    level = "layer"

    def __init__(self, method: str) -> None:
        self.name = self.method = method

    def takes(self, block: Block) -> bool:
        return True

    def make(self, block: Block, stock: Stock, watch: Watch) -> Ready:
        dense = stock.weight(block.shape)
        quantizer = METHODS[self.method]
        first: QuantizedTensor = stock.kept(block.shape, self.name, lambda: quantizer.quantize(dense))
        if block.operation == "quantize":
            moved = dense.nbytes + first.nbytes
            sources = [dense, *(dense.clone() for _ in range(watch.copies(moved) - 1))]
            calls = [fixed(quantizer.quantize, w) for w in sources]
            return Ready(calls, moved, 0, lambda: self.same_on_cpu(dense), lambda: type(quantizer).__name__)
        moved = first.nbytes + block.m * (block.shape.n + block.shape.k) * dense.element_size()
        weights = self.copied(first, watch.copies(first.nbytes), block, stock)[: watch.copies(moved)]
        if block.operation == "dequantize":
            calls = [fixed(w.dequantize, DTYPE) for w in weights]
            return Ready(calls, first.nbytes + dense.nbytes, 0, lambda: decoded(first), lambda: first.format)
        layers = [self.layer(i, w, block, stock) for i, w in enumerate(weights)]
        xs = stock.inputs(block, len(layers))
        run = torch.no_grad()
        calls = [fixed(run(layer.forward), x) for layer, x in zip(layers, xs, strict=True)]

        def check() -> tuple[str | None, float | None]:
            rows = xs[0][:CHECKED_ROWS]
            w = stock.kept(block.shape, (self.name, "decoded"), lambda: first.decode().to(torch.float32))
            return close_to(calls[0]()[:CHECKED_ROWS], rows.double() @ w.double().T, self.name)

        return Ready(calls, moved, flop(block), check, lambda: layers[0].engine_name)

    def copied(self, first: QuantizedTensor, n: int, block: Block, stock: Stock) -> list[QuantizedTensor]:
        """The weight and copies of it, kept for the other blocks of the shape."""

        def make() -> list[QuantizedTensor]:
            config = first.config()
            clones = ({name: t.clone() for name, t in first.stored().items()} for _ in range(n - 1))
            return [first, *(from_config(config, stored) for stored in clones)]

        weights: list[QuantizedTensor] = stock.kept(block.shape, (self.name, "copies"), make)
        return weights

    def layer(self, i: int, weight: QuantizedTensor, block: Block, stock: Stock) -> QuantizedLinear:
        """The layer over copy `i`, kept for the other numbers of rows."""
        key = (self.name, "layer", i)
        made: QuantizedLinear = stock.kept(block.shape, key, lambda: QuantizedLinear(weight, None))
        return made

    def same_on_cpu(self, dense: Tensor) -> tuple[str | None, float | None]:
        """Whether the device and the CPU make the same of a few rows."""
        rows = dense[:QUANTIZED_ROWS]
        here, there = METHODS[self.method].quantize(rows), METHODS[self.method].quantize(rows.cpu())
        error = relative_error(here.decode().cpu(), there.decode())
        if error <= SAME_CODES:
            return None, error
        return f"{self.name}: quantized here and on the CPU, rows decode to values {error:.3g} apart", error


def close_to(got: Tensor, want: Tensor, name: str) -> tuple[str | None, float | None]:
    """(None or a sentence, relative error) by the tolerance of a product."""
    error, allowed = relative_error(got, want), MULTIPLIED.bounds[got.dtype]
    if error <= allowed:
        return None, error
    return f"{name}: relative error {error:.3g} exceeds {allowed:.3g} for {got.dtype} ({MULTIPLIED.why})", error


def decoded(weight: QuantizedTensor) -> tuple[str | None, float | None]:
    """Whether decoding to the short dtype is the float32 weight, rounded."""
    error = relative_error(weight.dequantize(DTYPE), weight.decode())
    return (None if error <= 2**-8 else f"{weight.format}: decoded to {DTYPE} it is off by {error:.3g}"), error


def layer_subjects() -> list[Subject]:
    """The formats of `LAYERS` that are registered."""
    return [Layer(name) for name in LAYERS if name in METHODS]
