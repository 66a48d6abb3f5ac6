"""Block-sparse weights on a GPU: odd sizes in every dtype, bit equality, graphs, every configuration, large weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels import blocks_dequantize, blocks_products
from kernels.dispatch import OPERATORS
from kernels.op import operations, relative_error
from kernels.routes import ROUTES, taking
from kernels.sparse_starts import mask_starts
from kernels.tuning import Kernel
from quant.engines.blocks import Blocks as Ready
from quant.formats.kept_blocks import KeptBlocks
from quant.methods.blocks import Blocks
from quant.methods.none import Unquantized
from quant.methods.uniform import Uniform
from tests.kernels.conftest import run_guarded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
PRODUCTS = {"blocks_matmul": "x", "blocks_grad": "dy"}
NAMES = (*PRODUCTS, "blocks_dequantize")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = (1, 3, 17, 63, 64, 65, 127, 1000, 4097)
SHAPES = [(SIZES[i], SIZES[(i + shift) % 9], SIZES[(2 * i + 5) % 9]) for i in range(9) for shift in (1, 5, 8)]
BOUND = {torch.float32: 2**-18, torch.float16: 2**-9, torch.bfloat16: 2**-6}
KEPT = {
    "bf16": Unquantized("bfloat16"),
    "int4": Uniform(4, 64),
    "int3-zero": Uniform(3, 16, zero="float"),
    "int8": Uniform(8, 64),
}


def sized(name: str, m: int, n: int, k: int, dtype: torch.dtype) -> dict[str, Any]:
    return dict(operations()[name].sized(m, n, k, dtype, "cuda").arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_odd_sizes(name: str, dtype: torch.dtype) -> None:
    op = operations()[name]
    wrong = []
    for m, n, k in [*SHAPES, *((m, 1000, 4097) for m in (1, 2))]:
        arguments = sized(name, m, n, k, dtype)
        wrong += [(m, n, k, said) for said in [op.disagreement(run_guarded(op, arguments), arguments)] if said]
    assert wrong == []


@pytest.mark.parametrize("m", [1, 2, 64])
@pytest.mark.parametrize("name", NAMES)
def test_repeated_and_captured_runs_give_the_same_bits(name: str, m: int) -> None:
    op, arguments = operations()[name], sized(name, m, 1024, 8192, torch.bfloat16)
    want = op.triton(**arguments).clone()
    for _ in range(20):
        assert torch.equal(op.triton(**arguments), want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = op.triton(**arguments)
    got.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_row_of_the_product_does_not_depend_on_the_batch(name: str) -> None:
    op, arguments, of = operations()[name], sized(name, 130, 1000, 4097, torch.bfloat16), PRODUCTS[name]
    whole = op.triton(**arguments)
    for m in (2, 5, 16, 17, 33, 64, 65):
        assert torch.equal(op.triton(**{**arguments, of: arguments[of][:m]}), whole[:m])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("m", [1, 16, 64])
def test_every_configuration_is_right(name: str, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    op, arguments = operations()[name], sized(name, m, 520, 4096, torch.bfloat16)
    decoder = name == "blocks_dequantize"
    module, word = (blocks_dequantize, "DECODE") if decoder else (blocks_products, "SMALL")
    word = "GEMV" if m == 1 and name == "blocks_matmul" else word
    kernel: Kernel = getattr(module, word)
    for config in kernel.configs:
        monkeypatch.setattr(module, word, Kernel(kernel.fn, (config,), kernel.slow, kernel.key))
        assert op.disagreement(run_guarded(op, arguments), arguments) is None, config


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", ROUTES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_route_is_right_and_so_is_its_gradient(name: str, way: str, dtype: torch.dtype) -> None:
    arguments, of = sized(name, 33, 1000, 2048, dtype), PRODUCTS[name]
    mine, theirs = arguments[of].clone().requires_grad_(), arguments[of].double().requires_grad_()
    with taking(way):
        got = OPERATORS[name].call(**{**arguments, of: mine})
        outer = torch.randn(got.shape, device="cuda").to(dtype)
        got.backward(outer)
    want = operations()[name].reference(**{**arguments, of: theirs})
    want.backward(outer.double())
    assert mine.grad is not None
    assert relative_error(got.detach(), want.detach()) < BOUND[dtype]
    assert relative_error(mine.grad, theirs.grad) < BOUND[dtype]


@pytest.mark.parametrize("values", KEPT)
@pytest.mark.parametrize("size", [(16, 16), (8, 8), (64, 64), (1, 16), (32, 4)])
def test_a_stored_weight_is_decoded_bit_by_bit_and_multiplied(size: tuple[int, int], values: str) -> None:
    weight = torch.randn(515, 1100, generator=torch.Generator().manual_seed(0))
    stored = Blocks(0.5, *size, KEPT[values]).quantize(weight)
    moved = stored.to("cuda")
    assert isinstance(moved, KeptBlocks)
    ready = Ready(moved)
    run = operations()["blocks_dequantize"].triton
    for dtype in DTYPES:
        got = run(**ready.arguments, shape=stored.shape, dtype=dtype)
        assert torch.equal(got.cpu(), stored.decode().to(dtype))
        w = stored.decode().double().cuda()
        for m in (1, 17, 64):
            x, dy = (torch.randn(m, columns, device="cuda").to(dtype) for columns in (1100, 515))
            assert relative_error(ready.matmul(x), x.double() @ w.T) < BOUND[dtype]
            assert relative_error(ready.transposed(dy), dy.double() @ w) < BOUND[dtype]


def test_kept_blocks_beyond_31_bits_of_weights() -> None:
    n, k = 140001, 32768  # 4.6e9 weights, half of the blocks kept, in codes of 4 bits
    down, across = -(-n // 8), k // 8
    mask = torch.full((down, across // 8), 0x5A, dtype=torch.uint8, device="cuda")
    kept = down * across // 2
    codes = torch.randint(256, (kept, 32), dtype=torch.uint8, device="cuda")
    scale = torch.rand(kept, 1, device="cuda") + 0.1
    sides = {"levels": None, "zero": None, "bits": 4, "group": 64, "rows": 0, "block": (8, 8)}
    op, rows = operations()["blocks_matmul"], 97  # the last row of blocks has one row
    few, part = 13, 13 * across // 2
    for m in (1, 17):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        whole = op.triton(x, mask, mask_starts(mask, across, 8), codes, scale=scale, n=n, **sides)
        last = {"mask": mask[-few:], "starts": mask_starts(mask[-few:], across, 8), "values": codes[-part:]}
        arguments = {"x": x, **last, "scale": scale[-part:], "n": rows, **sides}
        assert op.disagreement(whole[:, -rows:].contiguous(), arguments) is None
