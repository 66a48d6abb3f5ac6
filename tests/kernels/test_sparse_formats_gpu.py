"""Sparse weights of every kind of values on a GPU: odd sizes in every dtype, bit equality, graphs, large weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels import sparse_coded, sparse_dequantize
from kernels.op import operations
from kernels.sparse_starts import mask_starts
from kernels.tuning import Kernel
from quant.engines.sparse import Sparse
from quant.methods.double import DynamicMap
from quant.methods.nf4 import NF
from quant.methods.none import Unquantized
from quant.methods.prune import Magnitude, NOfM
from quant.methods.uniform import Uniform
from tests.kernels.conftest import run_guarded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
PRODUCTS = ("n_of_m_matmul", "bitmask_coded_matmul")
NAMES = (*PRODUCTS, "n_of_m_dequantize", "bitmask_dequantize")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = (1, 3, 17, 63, 64, 65, 127, 1000, 4097)
SHAPES = [(SIZES[i], SIZES[(i + shift) % 9], SIZES[(2 * i + 5) % 9]) for i in range(9) for shift in (1, 5, 8)]
KEPT = {
    "bf16": Unquantized("bfloat16"),
    "int4": Uniform(4, 64),
    "int3-zero": Uniform(3, 16, zero="float"),
    "int8": Uniform(8, 64),
    "nf4": NF(bits=4, group=64),
    "nf4-double": NF(bits=4, group=16, scale=DynamicMap()),
}


def sized(name: str, m: int, n: int, k: int, dtype: torch.dtype) -> dict[str, Any]:
    return dict(operations()[name].sized(m, n, k, dtype, "cuda").arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_example(name: str, dtype: torch.dtype) -> None:
    op = operations()[name]
    examples = op.examples(dtype, "cuda")
    assert [e.label for e in examples if op.disagreement(run_guarded(op, e.arguments), e.arguments)] == []


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
    op, arguments = operations()[name], sized(name, 130, 1000, 4097, torch.bfloat16)
    whole = op.triton(**arguments)
    for m in (2, 5, 16, 17, 33, 64, 65):
        assert torch.equal(op.triton(**{**arguments, "x": arguments["x"][:m]}), whole[:m])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("m", [1, 16, 64])
def test_every_configuration_is_right(name: str, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    op, arguments = operations()[name], sized(name, m, 520, 4096, torch.bfloat16)
    if name.endswith("dequantize"):
        module, word = sparse_dequantize, "CELLS" if name.startswith("n_of_m") else "MASKED"
    else:
        module, word = sparse_coded, "GEMV" if m == 1 else "SMALL"
        word += "" if name.startswith("n_of_m") else "_MASKED"
    kernel: Kernel = getattr(module, word)
    for config in kernel.configs:
        monkeypatch.setattr(module, word, Kernel(kernel.fn, (config,), kernel.slow, kernel.key))
        assert op.disagreement(run_guarded(op, arguments), arguments) is None, config


@pytest.mark.parametrize("values", KEPT)
@pytest.mark.parametrize("pruner", ["2of4", "4of8", "3of7", "mask"])
def test_a_stored_weight_is_decoded_bit_by_bit(pruner: str, values: str) -> None:
    how = {"2of4": (2, 4), "4of8": (4, 8), "3of7": (3, 7)}
    method = Magnitude(0.4, values=KEPT[values]) if pruner == "mask" else NOfM(*how[pruner], values=KEPT[values])
    stored = method.quantize(torch.randn(515, 1100, generator=torch.Generator().manual_seed(0)))
    ready = Sparse(stored.to("cuda"))  # type: ignore[arg-type]
    run = operations()[ready.decoder].triton
    for dtype in DTYPES:
        got = run(**ready.decoded, shape=stored.shape, dtype=dtype)
        assert torch.equal(got.cpu(), stored.decode().to(dtype))


def test_kept_codes_beyond_31_bits_of_a_mask() -> None:
    n, k = 140001, 32768  # 4.6e9 weights, half of them kept, in codes of 4 bits
    mask = torch.full((n, k // 8), 0x5A, dtype=torch.uint8, device="cuda")
    starts = mask_starts(mask, k)
    assert starts.dtype == torch.int64
    kept = n * k // 2
    codes = torch.randint(256, (1, kept // 2), dtype=torch.uint8, device="cuda")
    scale = torch.rand(1, kept // 64, device="cuda") + 0.1
    sides = {"levels": None, "zero": None, "bits": 4, "group": 64}
    op = operations()["bitmask_coded_matmul"]
    rows = 100
    part = rows * k // 2
    for m in (1, 17):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        whole = op.triton(x, mask, starts, codes, scale=scale, kept=kept, **sides)
        few = {
            "mask": mask[-rows:],
            "starts": mask_starts(mask[-rows:], k),
            "kept": part,
            "scale": scale[:, -part // 64 :],
        }
        last = {"x": x, "codes": codes[:, -part // 2 :], **sides, **few}
        assert op.disagreement(whole[:, -rows:].contiguous(), last) is None


def test_kept_codes_beyond_31_bits_of_four_of_eight() -> None:
    n, k = 280001, 16384  # 4.6e9 weights
    indices = torch.empty(n, k // 8 * 12 // 8, dtype=torch.uint8, device="cuda")
    indices.view(-1, 3)[:] = torch.tensor([0x05, 0x31, 0x77], dtype=torch.uint8, device="cuda")  # 0 1 2 3, 0 5 6 7
    values = torch.empty(n, k // 2, dtype=torch.bfloat16, device="cuda").uniform_(-1, 1)
    none = {"levels": None, "scale": None, "zero": None, "of": 8, "bits": 0, "group": "tensor", "rows": 0}
    op = operations()["n_of_m_matmul"]
    last = slice(n - 100, n)
    for m in (1, 17):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        whole = op.triton(x, indices, values, **none)
        few = {"x": x, "indices": indices[last], "values": values[last], **none}
        assert op.disagreement(whole[:, last].contiguous(), few) is None
