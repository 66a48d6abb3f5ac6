"""Uniform quantizers: half-step bound, the textbook form, what scaling, negating and permuting the weight does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant import METHODS
from quant.grouping import decode_scale, expand
from quant.methods.double import DynamicMap
from quant.methods.uniform import Uniform

ZEROS = (None, "integer", "float")
bits = st.integers(2, 8)
zeros = st.sampled_from(ZEROS)
groups = st.sampled_from([1, 7, 16, 64, "channel", "tensor"])


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """[n, k] of mixed magnitude, with zeros and whole zero stretches."""
    n, k = draw(st.integers(1, 5)), draw(st.integers(1, 70))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    w = torch.randn(n, k, generator=g) * 10.0 ** draw(st.integers(-6, 4)) + draw(st.sampled_from([0.0, 3.0, -3.0]))
    w[torch.rand(n, k, generator=g) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0
    return w


@settings(deadline=None)
@given(weights(), bits, zeros, groups, st.sampled_from(["float32", "float16"]))
def test_error_is_half_a_step(w: Tensor, bits: int, zero: str | None, group: int | str, scale: str):
    weight = Uniform(bits, group, zero, scale).quantize(w)
    step = expand(decode_scale(weight.scale), (w.shape[0], w.shape[1]), group)
    # a float16 scale may be short by 2**-11 of itself, or by 2**-13 of the largest; a float16 zero point by 2**-11
    levels = 2**bits
    slack = levels * (2.0**-10 if scale == "float16" or zero == "float" else 2.0**-21)
    lost = w.abs().max() * 2.0**-11 if scale == "float16" else 0.0
    assert ((weight.decode() - w).abs() <= step * (0.5 + slack) + lost + 1e-30).all()


@settings(deadline=None)
@given(weights(), bits, st.sampled_from([None, "integer"]), groups)
def test_zero_stays_zero(w: Tensor, bits: int, zero: str | None, group: int | str):
    decoded = Uniform(bits, group, zero).quantize(w).decode()
    assert not decoded[w == 0].any()


@settings(deadline=None)
@given(weights(), bits, zeros, groups, st.integers(-20, 20))
def test_scaling_by_a_power_of_two_scales_the_result(
    w: Tensor, bits: int, zero: str | None, group: int | str, power: int
):
    method = Uniform(bits, group, zero, "float32")
    assert torch.equal(method.quantize(w * 2.0**power).decode(), method.quantize(w).decode() * 2.0**power)


@settings(deadline=None)
@given(weights(), bits, groups)
def test_negating_negates_the_symmetric_result(w: Tensor, bits: int, group: int | str):
    method = Uniform(bits, group)
    assert torch.equal(method.quantize(-w).decode(), -method.quantize(w).decode())


@settings(deadline=None)
@given(weights(), bits, zeros, st.sampled_from([1, 16, "channel"]))
def test_rows_are_quantized_apart(w: Tensor, bits: int, zero: str | None, group: int | str):
    order = torch.randperm(w.shape[0], generator=torch.Generator().manual_seed(0))
    method = Uniform(bits, group, zero, "float32")
    assert torch.equal(method.quantize(w[order]).decode(), method.quantize(w).decode()[order])


def test_textbook_form():
    """x_hat = round(s x) / s with s = 127 / max|x|: the same codes, the same values to float32 rounding."""
    x = torch.randn(300, 200, generator=torch.Generator().manual_seed(1))
    weight = METHODS["uniform-int8-textbook"].quantize(x)
    s = 127 / x.double().abs().max()
    want = (s * x.double()).round()
    off = (s * x.double() - want).abs()
    codes = weight.unpacked().double() - 128
    assert torch.equal(codes[off < 0.4999], want[off < 0.4999])  # on a tie float32 may take the other side
    assert (codes - want).abs().max() <= 1
    assert (codes != want).sum() < 10
    torch.testing.assert_close(weight.decode().double(), codes / s, rtol=3e-7, atol=0)
    assert weight.stored()["scale"].shape == (1, 1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_grid_keeps_the_maximum_and_is_symmetric(bits: int):
    w = torch.randn(4, 128, generator=torch.Generator().manual_seed(2))
    weight = Uniform(bits, 64, scale="float32").quantize(w)
    half = 2 ** (bits - 1)
    codes = weight.unpacked().int() - half
    assert int(codes.abs().max()) == half - 1
    largest = w.reshape(4, 2, 64).abs().amax(-1)
    torch.testing.assert_close(weight.decode().reshape(4, 2, 64).abs().amax(-1), largest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", range(2, 9))
def test_float_zero_keeps_both_ends(bits: int):
    w = torch.rand(4, 128, generator=torch.Generator().manual_seed(3)) * 5 - 1
    decoded = Uniform(bits, 64, "float", "float32").quantize(w).decode().reshape(4, 2, 64)
    cells = w.reshape(4, 2, 64)
    # a float16 zero point is within 2**-12 of itself, at most 2**bits - 1 steps, of (max - min) / (2**bits - 1) each
    for got, want in ((decoded.amax(-1), cells.amax(-1)), (decoded.amin(-1), cells.amin(-1))):
        assert ((got - want).abs() <= (cells.amax(-1) - cells.amin(-1)) * 2.0**-11).all()


def test_codes_are_rounded_before_they_are_shifted():
    """128.500001 is 128.5 in float32, and would go to the even 128."""
    w = torch.tensor([[127.0, 0.500001, -0.500001, 0.5, 1.5]])
    assert Uniform(8, "tensor", scale="float32").quantize(w).decode().tolist() == [[127, 1, -1, 0, 2]]


def test_codes_are_chosen_with_the_scale_as_stored():
    """An 8-bit scale that is off by 1 % moves the last of 127 codes by a step; what is not clipped stays nearest."""
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(5))
    weight = Uniform(8, 64, scale=DynamicMap()).quantize(w)
    codes, step = weight.unpacked().int() - 128, expand(decode_scale(weight.scale), (64, 256), 64)
    error = (weight.decode() - w).abs()
    inside = codes.abs() < 127
    assert (error[inside] <= 0.5001 * step[inside]).all()
    assert (error[~inside] > 0.6 * step[~inside]).any()  # the case is not empty: some maxima are clipped
    assert int(codes.min()) == -127  # and clipped alike on both sides


def test_asymmetric_range_includes_zero():
    w = torch.full((1, 64), 5.0)
    w[0, 0] = 6.0
    weight = Uniform(4, 64, "integer", "float32").quantize(w)
    assert float(weight.zero.decode()) == 0
    assert float(weight.scale) == pytest.approx(6 / 15)


@pytest.mark.parametrize(
    ("method", "k", "bits"),
    [
        (Uniform(4, 64), 256, 4.25),
        (Uniform(4, 64, scale="float32"), 256, 4.5),
        (Uniform(4, 128, "integer"), 256, 4.15625),
        (Uniform(4, 128, "float"), 256, 4.25),
        (Uniform(3, 64), 256, 3.25),
        (Uniform(8, "channel"), 256, 8.0625),
        (Uniform(4, 64), 65, (8 * 33 + 2 * 16) / 65),
    ],
)
def test_bits_per_weight_by_counted_bytes(method: Uniform, k: int, bits: float):
    weight = method.quantize(torch.randn(64, k))
    assert weight.bits_per_weight == pytest.approx(bits, abs=1e-12)
    assert weight.nbytes == sum(t.numel() * t.element_size() for t in weight.stored().values())


def test_scales_too_large_for_float16_are_kept_in_float32_and_counted():
    w = torch.randn(8, 128, generator=torch.Generator().manual_seed(4))
    ordinary, large = Uniform(4, 64).quantize(w), Uniform(4, 64).quantize(w * 2.0**24)
    assert ordinary.scale.dtype == torch.float16
    assert large.scale.dtype == torch.float32
    assert large.parts()["scales"] == 2 * ordinary.parts()["scales"]
    assert (large.decode() / 2.0**24 - w).norm() < 1.01 * (ordinary.decode() - w).norm()


@pytest.mark.parametrize(
    "settings", [{"bits": 1}, {"bits": 9}, {"group": 0}, {"group": "row"}, {"zero": "mean"}, {"scale": "int8"}]
)
def test_bad_settings_fail_at_construction(settings: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Uniform(**settings)
