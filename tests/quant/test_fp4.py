"""FP4 and MXFP4: the numbers of E2M1, ties to the even mantissa, powers of two as scales, bitsandbytes' own table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import METHODS
from quant.formats import E8M0
from quant.methods.fp4 import BNB_FP4_LEVELS, E2M1_LEVELS, FP4, MXFP4, nearest_e2m1


def e2m1(code: int) -> float:
    """The value of four bits, from the definition: sign, exponent with bias 1, one mantissa bit, subnormal at 0."""
    sign, exponent, mantissa = code >> 3, (code >> 1) & 3, code & 1
    size = mantissa * 0.5 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)
    return -size if sign else size


def test_levels_are_the_numbers_of_the_format():
    assert list(E2M1_LEVELS) == [e2m1(code) for code in range(16)]


def test_bitsandbytes_table():
    assert BNB_FP4_LEVELS[8:] == tuple(-v for v in BNB_FP4_LEVELS[:8])
    want = [0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4]
    assert BNB_FP4_LEVELS[:8] == pytest.approx(want, rel=1e-7)


def test_every_level_encodes_to_itself_and_zero_has_one_code():
    codes = nearest_e2m1(torch.tensor(E2M1_LEVELS))
    assert codes.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize(
    ("x", "want"), [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5, 4), (7, 6), (1e30, 6)]
)
def test_ties_go_to_the_even_mantissa_and_large_values_saturate(x: float, want: float):
    decoded = torch.tensor(E2M1_LEVELS)[nearest_e2m1(torch.tensor([x, -x])).int()]
    assert decoded.tolist() == [want, -want]


@given(st.floats(-6, 6, width=32))
def test_the_code_is_a_nearest_one(x: float):
    chosen = E2M1_LEVELS[int(nearest_e2m1(torch.tensor([x])))]
    assert abs(chosen - x) == min(abs(level - x) for level in E2M1_LEVELS)


def test_e8m0_holds_every_power_of_two_of_the_format():
    exponents = torch.arange(-127, 128).reshape(5, 51)
    want = torch.tensor(2.0, dtype=torch.float64) ** exponents
    assert torch.equal(E8M0.store(exponents).decode().double(), want)
    assert E8M0.store(torch.tensor([[-200, 200]])).codes.tolist() == [[0, 254]]


def test_e8m0_refuses_nan_and_wrong_tensors():
    for codes in (torch.tensor([[255]]).byte(), torch.tensor([[1.0]]), torch.tensor([1]).byte()):
        with pytest.raises(ValueError, match="E8M0"):
            E8M0((1, 1), torch.float32, codes)


@pytest.mark.parametrize("largest", [1.0, 1.5, 1.999, 2.0, 3.0, 0.3, 6e-8, 1e20])
def test_mx_scale_is_the_floor_of_the_logarithm_less_two(largest: float):
    w = torch.zeros(1, 64)
    w[0, 5], w[0, 40] = -largest, largest / 100
    scale = MXFP4().quantize(w).scale.decode()
    assert float(scale[0, 0]) == 2.0 ** (torch.tensor(largest).double().log2().floor() - 2)


def test_mx_keeps_its_own_numbers_and_saturates():
    w = torch.tensor([[*E2M1_LEVELS, *E2M1_LEVELS]])
    assert torch.equal(MXFP4().quantize(w).decode(), w)
    # the scale of a group whose largest is 7.9 is one, and one has no level above six
    assert MXFP4().quantize(torch.tensor([[7.9, 1.0]])).decode().tolist() == [[6.0, 1.0]]


def test_mx_equals_the_rule_written_out():
    w = torch.randn(9, 100, generator=torch.Generator().manual_seed(0)).double()
    decoded = MXFP4().quantize(w.float()).decode().double()
    levels = torch.tensor(E2M1_LEVELS).double()
    for i in range(0, 100, 32):
        cell = w[:, i : i + 32].float().double()
        scale = 2.0 ** (cell.abs().amax(1, keepdim=True).log2().floor() - 2)
        want = levels[((cell / scale)[..., None] - levels).abs().argmin(-1)] * scale
        assert torch.equal(decoded[:, i : i + 32], want)


def test_fp4_is_e2m1_over_six_times_the_maximum():
    w = torch.randn(8, 130, generator=torch.Generator().manual_seed(1))
    weight = FP4(scale="float32").quantize(w)
    levels = torch.tensor(E2M1_LEVELS).double() / 6
    for i in range(0, 130, 64):
        cell = w[:, i : i + 64].double()
        largest = cell.abs().amax(1, keepdim=True)
        want = levels[((cell / largest)[..., None] - levels).abs().argmin(-1)] * largest
        torch.testing.assert_close(weight.decode()[:, i : i + 64].double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["fp4-g64", "fp4-bnb-g64", "mxfp4"])
def test_minus_zero_is_never_written(name: str):
    w = torch.randn(16, 128, generator=torch.Generator().manual_seed(2)) ** 5
    assert not (METHODS[name].quantize(w).unpacked() == 8).any()


def test_bad_settings_fail_at_construction():
    for settings in ({"table": "e3m0"}, {"group": -1}, {"scale": "int8"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            FP4(**settings)
    with pytest.raises(ValueError, match="group"):
        MXFP4(0)
