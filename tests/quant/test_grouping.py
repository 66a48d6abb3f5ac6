"""Groups: cutting and joining are inverse, shapes agree, scales are stored in a dtype that can hold them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.grouping import (
    check_group,
    check_scale,
    decode_scale,
    expand,
    group_shape,
    grouped,
    inverse_of,
    store_scale,
    ungrouped,
)
from quant.methods.double import DynamicMap

shapes = st.tuples(st.integers(1, 6), st.integers(1, 90))
groups = st.one_of(st.integers(1, 100), st.sampled_from(["channel", "tensor"]))


@given(shapes, groups)
def test_ungrouped_undoes_grouped(shape: tuple[int, int], group: int | str):
    w = torch.arange(1.0, shape[0] * shape[1] + 1).reshape(shape)
    cells = grouped(w, group)
    assert tuple(cells.shape[:2]) == group_shape(shape, group)
    assert float(cells.sum()) == float(w.sum())  # filled in with zeros only
    assert torch.equal(ungrouped(cells, shape) if group != "tensor" else cells.reshape(shape), w)


@given(shapes, groups)
def test_expand_gives_each_weight_the_scale_of_its_group(shape: tuple[int, int], group: int | str):
    n, k = shape
    scale = torch.arange(1.0, group_shape(shape, group)[0] * group_shape(shape, group)[1] + 1)
    scale = scale.reshape(group_shape(shape, group))
    got = expand(scale, shape, group).expand(n, k)
    for i in range(n):
        for j in range(0, k, 11):
            row = 0 if group == "tensor" else i
            column = 0 if isinstance(group, str) else j // group
            assert got[i, j] == scale[row, column]


@given(shapes, st.integers(1, 100))
def test_a_group_wider_than_a_row_is_the_channel(shape: tuple[int, int], extra: int):
    w = torch.randn(shape)
    assert torch.equal(grouped(w, shape[1] + extra).abs().amax(-1), grouped(w, "channel").abs().amax(-1))


def test_grouped_is_a_view_where_nothing_is_filled_in():
    w = torch.randn(4, 128)
    assert grouped(w, 64).data_ptr() == w.data_ptr()


@pytest.mark.parametrize("group", [0, -64, 1.5, "row", None, True])
def test_bad_groups_are_refused(group: object):
    with pytest.raises(ValueError, match="group must be a positive integer, 'channel' or 'tensor', got"):
        check_group(group)


@pytest.mark.parametrize("scale", ["int8", "fp16", 16, None])
def test_bad_scales_are_refused(scale: object):
    with pytest.raises(ValueError, match="scale must be one of float32, float16, bfloat16, e4m3, e8m0 or a Quantizer"):
        check_scale(scale)


@pytest.mark.parametrize(
    ("values", "how", "dtype"),
    [
        ([1.0, 1e-3], "float16", torch.float16),
        ([1e5, 1.0], "float16", torch.float32),  # overflow
        ([1e-7, 1e-8], "float16", torch.float32),  # underflow of what matters
        ([1.0, 1e-8], "float16", torch.float16),  # what underflows is 2**-26 of the largest
        ([3e-6, 2e-6], "float16", torch.float32),  # subnormal: off by more than 1 in 128
        ([0.0, 0.0], "float16", torch.float16),
        ([-1e5, 1.0], "float16", torch.float32),  # signed scales
        ([1e30, 1e-30], "bfloat16", torch.bfloat16),
        ([1e30, 1e-30], "float32", torch.float32),
    ],
)
def test_scales_fall_back_to_float32_where_the_dtype_cannot_hold_them(
    values: list[float], how: str, dtype: torch.dtype
):
    scale = torch.tensor([values])
    stored = store_scale(scale, how)
    assert stored.dtype == dtype
    matters = scale.abs() > scale.abs().max() * 2.0**-12
    torch.testing.assert_close(decode_scale(stored)[matters], scale[matters], rtol=1 / 128, atol=0)


def test_a_quantizer_stores_scales_nested():
    scale = torch.rand(3, 5) + 1
    stored = store_scale(scale, DynamicMap())
    assert stored.shape == (3, 5)
    assert torch.equal(decode_scale(stored), stored.decode())


def test_inverse_of_zero_and_tiny_scales_is_zero():
    scale = torch.tensor([0.0, -1.0, 1e-40, 2.0, 2.0**-100])
    assert inverse_of(scale).tolist() == [0.0, -1.0, 0.0, 0.5, 2.0**100]
