"""Double quantization: the dynamic table is searched exactly, scales keep their sign, every method accepts it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import METHODS
from quant.formats import Reshaped
from quant.methods.double import DynamicMap, Flat, dynamic_levels
from quant.methods.nf4 import NF
from quant.methods.uniform import Uniform
from tests.quant.samples import quantize

scales = st.lists(st.floats(0, 1000, width=32), min_size=1, max_size=40)


def test_table_of_dynamic_levels():
    levels = dynamic_levels()
    assert levels.shape == (256,)
    assert torch.equal(levels, levels.sort().values)
    assert levels.unique().numel() == 256
    assert torch.equal(levels[:127], -levels[128:255].flip(0))  # symmetric but for the one
    assert levels[127] == 0
    assert levels[255] == 1
    # each decade has twice the levels of the one below it
    counts = [int(((levels > 10.0 ** (i - 7)) & (levels < 10.0 ** (i - 6))).sum()) for i in range(7)]
    assert counts == [1, 2, 4, 8, 16, 32, 64]


def test_codes_are_the_nearest_levels_around_the_mean():
    v = torch.randn(7, 100, generator=torch.Generator().manual_seed(0))
    weight = DynamicMap().quantize(v)
    assert isinstance(weight, Reshaped)
    inner = weight.inner
    mean = v.double().mean()
    rest = torch.nn.functional.pad((v.double() - mean).flatten(), (0, -700 % 256)).reshape(-1, 256)
    largest = rest.abs().amax(1, keepdim=True)
    levels = dynamic_levels().double()
    best = ((rest / largest)[..., None] - levels).abs().amin(-1) * largest
    error = (weight.decode() - v).double().flatten().abs()
    # float32 rounding of the mean, the reciprocal and the sum
    torch.testing.assert_close(error, best.flatten()[:700], rtol=0, atol=2e-6)
    assert inner.scale.shape == (1, 3)
    assert float(inner.offset) == pytest.approx(float(mean), rel=1e-5)


@given(scales)
def test_non_negative_values_never_decode_below_zero(values: list[float]):
    v = torch.tensor([values])
    for quantizer in (DynamicMap(), DynamicMap(8), Flat(Uniform(8, 16, zero="integer", scale="float32"))):
        assert (quantizer.quantize(v).decode() >= 0).all()


def test_a_scale_far_below_the_largest_would_decode_below_zero_unless_raised():
    v = torch.full((1, 256), 1e-4)
    v[0, 0] = 10.0
    inner = DynamicMap().quantize(v).inner
    lower = dynamic_levels()[inner.codes[0, 1:].int() - 1] * inner.scale + inner.offset
    nearer = (lower - 1e-4).abs() < (inner.decode()[0, 1:] - 1e-4).abs()
    assert (nearer & (lower < 0)).all()  # the nearest level is the one below, which turns signs
    assert (inner.decode() >= 0).all()


def test_values_of_both_signs_take_the_nearest_level():
    v = torch.tensor([[-1.0, -0.5, 0.25, 1.25]])  # mean zero; 1.25 is the largest
    decoded = DynamicMap().quantize(v).decode()
    assert (decoded[0, :2] < 0).all()
    assert decoded[0, 3] == 1.25


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 3e-20, 1e20])
def test_equal_values_decode_to_themselves(value: float):
    v = torch.full((3, 90), value)
    torch.testing.assert_close(DynamicMap().quantize(v).decode(), v, rtol=1e-6, atol=0)


def test_groups_of_scales_run_over_the_ends_of_rows():
    v = torch.rand(5, 100, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        DynamicMap().quantize(v).decode().flatten(), DynamicMap().quantize(v.reshape(1, -1)).decode().flatten()
    )


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if hasattr(method, "scale")])
def test_any_method_with_a_scale_takes_a_quantizer_for_it(name: str):
    method = METHODS[name]
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    plain = dataclasses.replace(method, scale="float32")
    double = dataclasses.replace(method, scale=DynamicMap())
    assert double.family == "double quantization"
    error = [(quantize(q, w).decode() - w).norm() / w.norm() for q in (plain, double)]
    # an 8-bit scale moves a value by 1 %: added in quadrature, with as much again for clipped maxima
    assert error[1] < (error[0] ** 2 + 0.014**2) ** 0.5 * 1.02
    weight = quantize(double, w)
    assert weight.parts()["second_level"] > 0
    assert sum(weight.parts().values()) == weight.nbytes


def test_double_quantization_nests_again():
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    twice = NF(scale=Flat(Uniform(8, 16, scale=DynamicMap(32)))).quantize(w)
    assert {"scale.inner.scale.inner.codes", "scale.inner.codes"} <= set(twice.stored())
    assert (twice.decode() - w).norm() / w.norm() < 0.11  # NF4 alone: 0.092


def test_flat_keeps_shape_dtype_and_parts():
    w = torch.randn(3, 65).bfloat16()
    weight = Flat(NF()).quantize(w)
    assert weight.dequantize().dtype == torch.bfloat16
    assert weight.shape == (3, 65)
    assert weight.parts() == NF().quantize(w.reshape(1, -1)).parts()
    assert Flat(NF()).family == "nf4"


@pytest.mark.parametrize("group", [0, -1, "channel", 2.0])
def test_bad_group_fails_at_construction(group: object):
    with pytest.raises(ValueError, match="group"):
        DynamicMap(group)
