"""NVFP4: E4M3 scales under a float32 factor; four or six; the exponent of MXFP4 rounded up."""

from __future__ import annotations

import pytest
import torch

from quant import METHODS
from quant.formats import E4M3
from quant.methods.fp4 import E2M1_LEVELS, MXFP4
from quant.methods.nvfp4 import NVFP4


def normal(n: int, k: int, seed: int = 20) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def e4m3_numbers() -> torch.Tensor:
    """Every finite number of the format that is not negative, by definition: bias 7, subnormals at exponent 0."""
    values = [
        (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
        for exponent in range(16)
        for mantissa in range(8)
        if (exponent, mantissa) != (15, 7)  # NaN
    ]
    return torch.tensor(values, dtype=torch.float64)


def test_e4m3_stores_the_nearest_number_of_the_format() -> None:
    numbers = e4m3_numbers()
    assert numbers[-1] == 448
    w = torch.cat([normal(1, 1000) ** 3, torch.tensor([[0.0, 1e-9, -1e-9]])], 1)
    stored = E4M3.store(w)
    signed = torch.cat([-numbers, numbers])
    x = w.double() / stored.factor.double()
    best = (x[..., None] - signed).abs().amin(-1)
    torch.testing.assert_close((stored.values.double() - x).abs(), best, rtol=1e-4, atol=1e-5)  # x rounded to float32
    assert stored.values.float().abs().max() == 448
    torch.testing.assert_close(stored.decode().abs().max(), w.abs().max())


def test_e4m3_of_zeros_and_of_a_given_factor() -> None:
    assert torch.equal(E4M3.store(torch.zeros(2, 3)).decode(), torch.zeros(2, 3))
    stored = E4M3.store(torch.tensor([[3.0, 1000.0]]), torch.tensor([2.0]))
    assert stored.decode().tolist() == [[3.0, 896.0]]  # saturates


def test_e4m3_checks_its_tensors() -> None:
    good = E4M3.store(torch.ones(2, 3))
    with pytest.raises(ValueError, match="values must be float8_e4m3fn"):
        E4M3((2, 3), torch.float32, good.values.float(), good.factor)
    with pytest.raises(ValueError, match="factor must be one float32"):
        E4M3((2, 3), torch.float32, good.values, torch.ones(2))


def test_error_and_bits_on_normal_weights() -> None:
    w = normal(4096, 1024)
    stored = METHODS["nvfp4"].quantize(w)
    groups = (stored.decode() - w).view(-1, 16).square().mean(1)
    error = float(groups.std()) / len(groups) ** 0.5
    assert abs(float(groups.mean()) - 0.009039) < 4.5 * 1.12 * error + 5e-7  # as in test_absmax_error
    assert error < 2e-3 * 0.009039
    assert stored.bits_per_weight == 4.5
    assert stored.parts()["constants"] == 4 * (16 + 1)


@pytest.mark.parametrize("four_or_six", [False, True])
def test_decoded_weights_are_levels_times_scales_and_the_nearest(four_or_six: bool) -> None:
    w = normal(8, 64) * 0.02
    stored = NVFP4(four_or_six=four_or_six).quantize(w)
    grid = torch.tensor(E2M1_LEVELS) * stored.scale.decode()[..., None]
    cells = w.view(8, 4, 16, 1)
    best = (cells - grid[:, :, None]).abs().amin(-1).view(8, 64)
    torch.testing.assert_close((stored.decode() - w).abs(), best, rtol=1e-4, atol=1e-8)


def test_the_largest_stands_at_six() -> None:
    w = normal(64, 64)
    ratio = w.view(64, 4, 16).abs().amax(-1) / NVFP4().quantize(w).scale.decode()
    assert ((ratio > 6 * 16 / 17.01) & (ratio < 6 * 16 / 14.99)).all()  # half a step of three mantissa bits


def test_four_or_six_is_the_better_of_both_in_every_group() -> None:
    w = normal(256, 256)
    errors = {}
    for name, method in (("six", NVFP4()), ("either", NVFP4(four_or_six=True))):
        errors[name] = (method.quantize(w).decode() - w).view(-1, 16).square().sum(1)
    assert errors["either"].sum() < 0.85 * errors["six"].sum()  # measured: .00755 against .00904
    ratio = w.view(256, 16, 16).abs().amax(-1) / NVFP4(four_or_six=True).quantize(w).scale.decode()
    fours, sixes = (ratio < 4.3).sum(), (ratio > 5.6).sum()
    assert fours + sixes == ratio.numel()
    assert min(fours, sixes) > 0.1 * ratio.numel()


def test_mx_exponent_rounded_up_saturates_nothing() -> None:
    w = normal(4096, 1024)
    stored = MXFP4(rounding="ceil").quantize(w)
    largest = w.view(4096, -1, 32).abs().amax(-1)
    ratio = largest / stored.scale.decode()
    assert ratio.max() <= 6
    assert ratio.min() > 3
    groups = (stored.decode() - w).view(-1, 32).square().mean(1)
    error = float(groups.std()) / len(groups) ** 0.5
    assert abs(float(groups.mean()) - 0.013310) < 4.5 * 1.12 * error + 5e-7
    exact = MXFP4(rounding="ceil").quantize(torch.tensor([[6.0, 1.0, 0.0]])).scale.decode()
    assert exact.item() == 1.0


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="group"):
        NVFP4(0)
    with pytest.raises(ValueError, match="rounding"):
        MXFP4(rounding="nearest")
