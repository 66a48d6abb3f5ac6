"""Sparse products on a GPU: odd sizes in bfloat16, bit equality, graphs, very large weights, torch's own product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import sparse_products
from kernels.op import operations
from kernels.sparse_starts import mask_starts
from kernels.sparse_torch import LABEL, refusal, semi_structured, semi_structured_matmul
from tests.kernels.conftest import run_guarded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
NAMES = ("two_of_four_matmul", "bitmask_matmul")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = (1, 3, 17, 63, 64, 65, 127, 1000, 4097)
SHAPES = [(SIZES[i], SIZES[(i + shift) % 9], SIZES[(2 * i + 5) % 9]) for i in range(9) for shift in (1, 5, 8)]


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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("m", [1, 16, 64])
def test_every_configuration_is_right(name: str, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    op, arguments = operations()[name], sized(name, m, 520, 4096, torch.bfloat16)
    word = "GEMV" if m == 1 else "SMALL" if name == "two_of_four_matmul" else "SMALL_MASKED"
    kernel = getattr(sparse_products, word)
    for config in kernel.configs:
        monkeypatch.setattr(sparse_products, word, type(kernel)(kernel.fn, (config,), kernel.slow, kernel.key))
        assert op.disagreement(run_guarded(op, arguments), arguments) is None, config


def test_kept_weights_beyond_31_bits_of_a_mask() -> None:
    n, k = 70001, 32768  # 2.3e9 weights, all kept
    mask = torch.full((n, k // 8), 255, dtype=torch.uint8, device="cuda")
    values = torch.empty(1, n * k, dtype=torch.bfloat16, device="cuda").uniform_(-1, 1)
    starts = mask_starts(mask, k)
    assert starts.dtype == torch.int64
    assert starts[-1, -1].item() == n * k - 512
    last = slice(n - 100, n)
    first = (n - 100) * k
    for m in (1, 17):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        op = operations()["bitmask_matmul"]
        whole = op.triton(x, mask, starts, values)
        few = {"x": x, "mask": mask[last], "starts": starts[last] - first, "values": values[:, first:]}
        assert op.disagreement(whole[:, last].contiguous(), few) is None


def test_kept_weights_beyond_31_bits_of_two_of_four() -> None:
    n, k = 140001, 32768  # 4.6e9 weights, half of them kept
    indices = torch.full((n, k // 8), 0x1B, dtype=torch.uint8, device="cuda")  # places 0 1, then 2 3, and so on
    values = torch.empty(n, k // 2, dtype=torch.bfloat16, device="cuda").uniform_(-1, 1)
    last = slice(n - 100, n)
    for m in (1, 17):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        op = operations()["two_of_four_matmul"]
        whole = op.triton(x, indices, values, None, group="tensor")
        few = {"x": x, "indices": indices[last], "values": values[last], "scale": None, "group": "tensor"}
        assert op.disagreement(whole[:, last].contiguous(), few) is None


def pruned(n: int, k: int, dtype: torch.dtype) -> Tensor:
    weight = torch.randn(n, k // 4, 4, device="cuda")
    smallest = weight.abs().argsort(-1)[..., :2]
    return weight.scatter(-1, smallest, 0.0).view(n, k).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_product_of_torch_is_the_product(dtype: torch.dtype) -> None:
    weight = pruned(256, 512, dtype)
    if (reason := refusal(weight)) is not None:
        pytest.skip(reason)
    stored = semi_structured(weight)
    assert stored.label.startswith(LABEL)
    for shape in ((1, 512), (17, 512), (2, 64, 512)):
        x = torch.randn(*shape, device="cuda").to(dtype)
        got = semi_structured_matmul(x, stored)
        want = x.double() @ weight.double().T
        assert got.shape == want.shape
        bound = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10  # the output is rounded once
        assert torch.linalg.vector_norm(got - want) <= bound * torch.linalg.vector_norm(want)


def test_the_product_of_torch_refuses_what_it_cannot_do() -> None:
    weight = pruned(256, 512, torch.bfloat16)
    if (reason := refusal(weight)) is not None:
        pytest.skip(reason)
    with pytest.raises(ValueError, match="float16 or bfloat16"):
        semi_structured(weight.float())
    with pytest.raises(ValueError, match="multiples of"):
        semi_structured(weight[:7])
    with pytest.raises(ValueError, match="more than two of four"):
        semi_structured(torch.ones_like(weight))
    with pytest.raises(TypeError, match="like the weight"):
        semi_structured_matmul(torch.ones(2, 512, device="cuda"), semi_structured(weight))
