"""Products on a GPU: bit equality from run to run, capture in a CUDA graph, odd sizes in bfloat16, large weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from kernels import gemv, small
from kernels.affine import affine_dequantize
from kernels.examples import affine_sized
from kernels.op import Op, operations
from kernels.packing import pack
from kernels.tuning import recorded, searching
from tests.kernels.conftest import run_guarded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
PRODUCTS = ("affine_matmul", "codebook_matmul", "pairs_matmul", "w8a8_matmul")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = (1, 3, 17, 63, 64, 65, 127, 1000, 4097)
SHAPES = [(SIZES[i], SIZES[(i + shift) % 9], SIZES[(2 * i + 5) % 9]) for i in range(9) for shift in (1, 5, 8)]


def sized(name: str, m: int, n: int, k: int, dtype: torch.dtype) -> dict[str, Any]:
    return dict(operations()[name].sized(m, n, k, dtype, "cuda").arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_odd_sizes(name: str, dtype: torch.dtype) -> None:
    op = operations()[name]
    wrong = []
    for m, n, k in [*SHAPES, *((m, 1000, 4097) for m in (1, 2, 3, 4))]:
        arguments = sized(name, m, n, k, dtype)
        wrong += [(m, n, k, said) for said in [op.disagreement(run_guarded(op, arguments), arguments)] if said]
    assert wrong == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 4, 5, 64])
@pytest.mark.parametrize("name", PRODUCTS)
def test_two_runs_give_the_same_bits(name: str, m: int, dtype: torch.dtype) -> None:
    op, arguments = operations()[name], sized(name, m, 1024, 8192, dtype)
    first = op.triton(**arguments)
    for _ in range(20):
        assert torch.equal(op.triton(**arguments), first)


@pytest.mark.parametrize("m", [1, 4, 5, 64])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_captured_graph_gives_the_same_bits(name: str, m: int) -> None:
    op, arguments = operations()[name], sized(name, m, 1024, 8192, torch.bfloat16)
    want = op.triton(**arguments).clone()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = op.triton(**arguments)
    for _ in range(3):
        got.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["affine_matmul", "codebook_matmul", "pairs_matmul"])
@pytest.mark.parametrize("m", [1, 2, 16, 64])
def test_every_configuration_is_right_and_for_more_rows_gives_the_same_bits(
    name: str, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_configuration(operations()[name], sized(name, m, 520, 4096, torch.bfloat16), monkeypatch)


@pytest.mark.parametrize("group", [64, 128, "channel"])
@pytest.mark.parametrize("m", [1, 2, 32, 64])
def test_every_configuration_gives_the_same_bits_with_zero_points(
    group: int | str, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = affine_sized(m, 520, 4096, torch.bfloat16, "cuda", product=True, group=group, zero=torch.float16)
    every_configuration(operations()["affine_matmul"], example.arguments, monkeypatch)


def every_configuration(op: Op, arguments: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the product in each configuration of its kernel: which one is taken may depend on the number of rows."""
    kernel = recorded(op.triton, arguments)[1][0].kernel
    single = len(arguments["x"]) == 1
    module = gemv if single else small
    word = next(word for word, value in vars(module).items() if value is kernel)
    first = op.triton(**arguments)
    for config in kernel.configs:
        monkeypatch.setattr(module, word, type(kernel)(kernel.fn, (config,), kernel.slow, kernel.key))
        got = run_guarded(op, arguments)
        assert op.disagreement(got, arguments) is None, config
        assert single or torch.equal(got, first), config


def test_a_search_changes_the_time_and_not_the_product(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTBENCH_CONFIGURATIONS", str(tmp_path))
    op, arguments = operations()["codebook_matmul"], sized("codebook_matmul", 16, 1024, 1024, torch.bfloat16)
    with searching():
        found = op.triton(**arguments)
    assert list(tmp_path.glob("*.json"))
    assert op.disagreement(found, arguments) is None
    assert op.disagreement(op.triton(**arguments), arguments) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_level_and_every_code_is_decoded_exactly_inside_the_product(dtype: torch.dtype) -> None:
    codes = pack(torch.arange(16, dtype=torch.uint8).repeat(64, 8), 4).cuda()
    one = torch.eye(128, dtype=dtype, device="cuda")
    scale = torch.ones(64, 2, device="cuda")
    levels = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)).cuda()
    for x in (one, *one[:16].split(1)):
        got = operations()["codebook_matmul"].triton(x, codes, levels, scale, bits=4, group=64, rows=0)
        assert torch.equal(got, x @ levels.to(dtype).repeat(64, 8).T)
        both = torch.stack([levels[0], -levels[0].roll(1)], 1)
        got = operations()["pairs_matmul"].triton(x, codes[:, :32].contiguous(), both, scale, bits=4, group=64)
        assert torch.equal(got, x @ both.to(dtype).flatten().repeat(64, 4).T)
        got = operations()["affine_matmul"].triton(x, codes, scale, None, bits=4, group=64)
        assert torch.equal(got, x @ (torch.arange(16, device="cuda") - 8).to(dtype).repeat(64, 8).T)


def test_offsets_beyond_31_bits() -> None:
    n, k = 70001, 32768  # 2.3e9 weights, their codes 1.1 GB
    codes = torch.randint(256, (n, k // 2), dtype=torch.uint8, device="cuda")
    scale = torch.rand(n, k // 64, device="cuda", dtype=torch.float16)
    last = slice(n - 300, n)
    for m in (1, 17):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        op = operations()["affine_matmul"]
        whole = op.triton(x, codes, scale, None, bits=4, group=64)
        few = {"x": x, "codes": codes[last], "scale": scale[last], "zero": None, "bits": 4, "group": 64}
        assert op.disagreement(whole[:, last].contiguous(), few) is None
    w = affine_dequantize(codes, scale, None, shape=(n, k), bits=4, group=64, dtype=torch.bfloat16)
    want = affine_dequantize(codes[last], scale[last], None, shape=(300, k), bits=4, group=64, dtype=torch.bfloat16)
    assert torch.equal(w[last], want)


def test_rows_of_x_beyond_31_bits_apart() -> None:
    k, row = 256, 2**30 + 8
    buffer = torch.empty(2 * row + k, dtype=torch.bfloat16, device="cuda")
    x = buffer.as_strided((3, k), (row, 1))
    x.copy_(torch.randn(3, k, device="cuda"))
    arguments = sized("codebook_matmul", 3, 100, k, torch.bfloat16)
    op = operations()["codebook_matmul"]
    assert torch.equal(op.triton(**{**arguments, "x": x}), op.triton(**{**arguments, "x": x.contiguous()}))
