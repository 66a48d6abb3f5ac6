"""Products with a quantized weight: odd sizes, columns shared out among programs, nested scales, 8-bit activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.gemv import PROGRAMS, piece, shares
from kernels.nested import NestedScale
from kernels.op import Op, interpreted
from kernels.packing import pack
from kernels.tuning import recorded
from tests.kernels.conftest import INTERPRETED, LOOPS, run_guarded

pytestmark = LOOPS
PRODUCTS = ("affine_matmul", "codebook_matmul")
W8A8: Op = next(iter(interpreted("kernels.w8a8").OPERATIONS))
SIZES = (1, 3, 17, 63, 64, 65, 127, 1000, 4097)
SHAPES = list(zip(SIZES, (4097, 1000, 65, 127, 1, 64, 17, 63, 3), (65, 127, 4097, 1000, 64, 17, 63, 3, 1), strict=True))


def product(name: str, m: int, n: int, k: int, dtype: torch.dtype = torch.float32, group: int = 32) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(m * 10000 + n * 100 + k)
    codes = torch.randint(256 if name == "w8a8_matmul" else 16, (n, k), generator=draw, dtype=torch.uint8)
    scale = torch.rand(n, -(-k // group), generator=draw) + 0.1
    x = torch.randn(m, k, generator=draw).to(dtype)
    if name == "w8a8_matmul":
        return {"x": x, "codes": codes, "scale": scale, "group": group}
    own: dict[str, Any] = {"x": x, "codes": pack(codes, 4), "scale": scale, "bits": 4, "group": group}
    if name == "affine_matmul":
        return own | {"zero": torch.rand(scale.shape, generator=draw) * 15}
    return own | {"levels": torch.randn(1, 16, generator=draw), "rows": 0}


def run_poisoned(op: Op, arguments: Mapping[str, Any]) -> Tensor:
    """The output of `op`, everything that a launch may write being NaN, or the largest code, before the first."""
    given = {t.data_ptr() for t in arguments.values() if isinstance(t, Tensor)}
    out, launches = recorded(op.triton, arguments)
    for launch in launches:
        for t in launch.arguments.values():
            if isinstance(t, Tensor) and t.data_ptr() not in given:
                t.fill_(float("nan") if t.dtype.is_floating_point else torch.iinfo(t.dtype).max)
    for launch in launches:
        launch.run()
    return out


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_odd_sizes(name: str, m: int, n: int, k: int) -> None:
    op, arguments = INTERPRETED[name], product(name, m, n, k)
    assert op.disagreement(run_guarded(op, arguments), arguments) is None


@pytest.mark.parametrize("name", PRODUCTS)
def test_odd_sizes_of_one_row(name: str) -> None:
    for n, k in zip((3, 1, 17, 64, 65, 127, 1000, 63, 4097), (1000, 3, 4097, 64, 17, 65, 63, 127, 1), strict=True):
        op, arguments = INTERPRETED[name], product(name, 1, n, k)
        assert op.disagreement(run_guarded(op, arguments), arguments) is None


@pytest.mark.parametrize("m", [1, 6])
@pytest.mark.parametrize("name", [*PRODUCTS, "w8a8_matmul"])
def test_x_may_have_any_strides(name: str, m: int) -> None:
    op = W8A8 if name == "w8a8_matmul" else INTERPRETED[name]
    arguments = product(name, m, 65, 127)
    x = arguments["x"]
    want = op.triton(**arguments)
    spread_out = torch.full((2 * m, 3 * 127), float("nan"))[::2, ::3].copy_(x)
    for same in (spread_out, x.T.contiguous().T):
        assert torch.equal(op.triton(**{**arguments, "x": same}), want)
    every = op.triton(**{**arguments, "x": x[-1:].expand(m, -1)})
    assert torch.equal(every, every[:1].expand(m, -1))


@pytest.mark.parametrize("m", [1, 7])
@pytest.mark.parametrize("name", PRODUCTS)
def test_shared_out_columns_are_all_written_and_added_in_one_order(name: str, m: int) -> None:
    op, arguments = INTERPRETED[name], product(name, m, 65, 4097, torch.float16)
    launches = recorded(op.triton, arguments)[1]
    assert [launch.kernel.fn.__name__ for launch in launches] == ["_gemv" if m == 1 else "_small", "_add_up"]
    assert launches[1].arguments["SPLITS"] > 4
    first, second = (run_poisoned(op, arguments) for _ in range(2))
    assert torch.equal(first, second)
    assert op.disagreement(first, arguments) is None


@pytest.mark.parametrize("name", [*PRODUCTS, "w8a8_matmul"])
def test_the_order_of_summation_follows_from_the_weight_alone(name: str) -> None:
    op = W8A8 if name == "w8a8_matmul" else INTERPRETED[name]
    orders: dict[str, set[Any]] = {}
    for m in (1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 300):
        for launch in recorded(op.triton, product(name, m, 96, 2048, torch.float16, group=64))[1]:
            a = launch.arguments
            order = tuple(a.get(word) for word in ("share", "BLOCK_K", "PIECE", "SPLITS"))
            orders.setdefault(f"{launch.kernel.fn.__name__} {min(m, 2)}", set()).add(order)
    assert len(orders) == (6 if name == "w8a8_matmul" else 4)
    assert all(len(seen) == 1 for seen in orders.values()), orders


@pytest.mark.parametrize(("n", "k", "block_k"), [(1, 1, 1024), (8192, 8192, 1024), (100, 28672, 512), (96, 4097, 256)])
def test_runs_of_columns_cover_them_and_none_is_empty(n: int, k: int, block_k: int) -> None:
    splits, share = shares(n, k, block_k)
    assert share % block_k == 0
    assert (splits - 1) * share < k <= splits * share
    assert 1 <= splits <= 64
    assert splits == 1 or splits * -(-n // 8) <= 2 * PROGRAMS


def test_a_piece_lies_in_one_group() -> None:
    assert [piece(g) for g in (0, 64, 48, 20, 7)] == [32, 32, 16, 4, 1]


@pytest.mark.parametrize("name", ["affine_matmul", "codebook_matmul", "affine_dequantize", "codebook_dequantize"])
def test_nested_scales_are_the_scales_that_they_decode_to(name: str) -> None:
    op = INTERPRETED[name]
    nested = [e for e in op.examples(torch.float32, "cpu") if "nested" in e.label]
    assert len(nested) == 5
    for example in nested:
        scale = example.arguments["scale"]
        assert isinstance(scale, NestedScale)
        plain = op.triton(**{**example.arguments, "scale": scale.values(torch.float32)})
        assert torch.equal(op.triton(**example.arguments), plain)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("m", [1, 6])
def test_a_row_that_is_not_finite_spoils_itself_alone(name: str, m: int) -> None:
    op, arguments = INTERPRETED[name], product(name, m, 33, 70)
    clean = op.triton(**arguments)
    for value in (float("inf"), float("nan")):
        x = arguments["x"].clone()
        x[0, 5] = value
        with np.errstate(invalid="ignore"):
            spoilt = op.triton(**{**arguments, "x": x})
        assert not spoilt[0].isfinite().any()
        assert torch.equal(spoilt[1:], clean[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("label", [e.label for e in W8A8.examples(torch.float32, "cpu")])
def test_eight_bit_activations_are_their_reference(label: str, dtype: torch.dtype) -> None:
    arguments = next(e.arguments for e in W8A8.examples(dtype, "cpu") if e.label == label)
    assert W8A8.disagreement(run_guarded(W8A8, arguments), arguments) is None
    assert torch.equal(run_poisoned(W8A8, arguments), W8A8.triton(**arguments))


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_odd_sizes_with_eight_bit_activations(m: int, n: int, k: int) -> None:
    arguments = product("w8a8_matmul", m, n, k)
    assert W8A8.disagreement(run_guarded(W8A8, arguments), arguments) is None


def test_a_row_with_eight_bit_activations_does_not_depend_on_the_others() -> None:
    arguments = product("w8a8_matmul", 33, 65, 1000)
    whole = W8A8.triton(**arguments)
    for rows in (slice(0, 1), slice(3, 20), slice(32, 33)):
        assert torch.equal(W8A8.triton(**{**arguments, "x": arguments["x"][rows]}), whole[rows])


def test_activations_that_are_whole_steps_are_multiplied_exactly() -> None:
    draw = torch.Generator().manual_seed(0)
    q = torch.randint(-127, 128, (5, 96), generator=draw).float()
    q[:, 0] = 127
    arguments = product("w8a8_matmul", 5, 17, 96)
    arguments |= {"x": q * 2.0**-5, "scale": torch.full((17, 1), 2.0**-7), "group": "channel"}
    want = q.long() @ (arguments["codes"].long() - 128).T
    assert torch.equal(W8A8.triton(**arguments), want.float() * 2.0**-12)


def test_rows_of_zeros_and_rows_that_are_not_finite_with_eight_bit_activations() -> None:
    arguments = product("w8a8_matmul", 4, 17, 96)
    x = arguments["x"]
    clean = W8A8.triton(**arguments)
    x[0], x[1, 3], x[2, 95] = 0, float("inf"), float("nan")
    with np.errstate(invalid="ignore"):
        got = W8A8.triton(**arguments)
    assert torch.count_nonzero(got[0]) == 0
    assert got[1:3].isnan().all()
    assert torch.equal(got[3], clean[3])


def test_too_many_columns_under_one_scale_are_refused() -> None:
    k = 2**17 + 1
    x, codes = torch.zeros(1, k), torch.zeros(1, k, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"131073 columns share a scale.*use groups"):
        W8A8.triton(x, codes, torch.ones(1, 1), group="channel")
