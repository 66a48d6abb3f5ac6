"""Quantile levels: equal mass, mean of each run."""

import pytest
import torch

from quant.core import METHODS
from quant.methods.quantile import Quantile, equal_mass_levels


def test_levels_are_the_means_of_equal_runs():
    values = torch.tensor([[5.0, 1, 2, 8, 3, 4, 7, 6]])
    assert equal_mass_levels(values, 4).tolist() == [[1.5, 3.5, 5.5, 7.5]]
    assert equal_mass_levels(torch.tensor([[2.0]]), 4).tolist() == [[2.0] * 4]


def test_uniform_weights_are_cut_evenly_and_used_evenly():
    w = torch.rand(256, 256, generator=torch.Generator().manual_seed(0))
    stored = Quantile(3, "tensor").quantize(w)
    torch.testing.assert_close(stored.levels[0].float(), (torch.arange(8) + 0.5) / 8, rtol=0, atol=5e-3)  # 65536 draws
    share = torch.bincount(stored.unpacked().flatten().int()) / w.numel()
    assert float((share - 1 / 8).abs().max()) < 5e-3


def test_levels_are_shares_of_the_largest_of_a_group_whatever_its_size():
    w = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    sizes = 2.0 ** torch.arange(64)[:, None].remainder(8)  # rows of many sizes, each with its own scale
    plain, scaled = (Quantile(4, "channel", "float32").quantize(x) for x in (w, w * sizes))
    assert torch.equal(plain.levels, scaled.levels)
    assert torch.equal(plain.decode() * sizes, scaled.decode())


def test_gaussian_error_lies_above_the_optimum():
    w = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    error = {m: float((METHODS[m].quantize(w).decode() - w).square().mean()) for m in ("quantile-4bit-g64", "nf4-g64")}
    assert error["nf4-g64"] < error["quantile-4bit-g64"] < 3 * error["nf4-g64"]


def test_settings_are_checked():
    for bad in ({"bits": 9}, {"group": 0}, {"scale": "int3"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Quantile(**bad)
