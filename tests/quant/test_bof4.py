"""BOF4 and BOF4-S: the tables of the paper, the error of the optimum, and what the sign of a scale is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quant import METHODS
from quant.grid import Grid
from quant.methods.bof4 import BOF, block_levels
from quant.methods.nf4 import NF
from tests.quant.samples import gaussian

THEORETICAL = (  # arXiv 2505.06653, table 8, "theoretical solution", block 64
    "-1 -0.7535689203869577 -0.5792681492535123 -0.4386720084478466 -0.3168191039791481 -0.2060291109696586 "
    "-0.1015640796456471 0 0.0887646748673216 0.1794535266886747 0.274249773841407 0.375951029286045 "
    "0.4885925268369112 0.6187715546288008 0.7790828367844242 1"
)
SIGNED = {  # the same, table 7, fitted to samples
    32: "-0.8732797503471375 -0.6907446384429932 -0.5437039136886597 -0.4173701703548431 -0.3038933575153351 "
    "-0.1986017823219299 -0.0981557220220566 0 0.0925938412547112 0.187048003077507 0.2855197489261627 "
    "0.3907126188278198 0.506283164024353 0.6379748582839966 0.7956376671791077 1",
    64: "-0.8568463921546936 -0.6692874431610107 -0.5235266089439392 -0.4004882574081421 -0.2910638153553009 "
    "-0.1900092959403992 -0.0938529595732689 0 0.0887671709060669 0.1794802695512772 0.2743096053600311 "
    "0.3760197460651398 0.4886530041694641 0.6188603639602661 0.7791395783424377 1",
    256: "-0.8146829009056091 -0.6221838593482971 -0.4820549190044403 -0.3669650852680206 -0.2659871876239777 "
    "-0.1733742356300354 -0.0855776593089104 0 0.0815095230937004 0.1649149656295776 0.2524392008781433 "
    "0.3470274209976196 0.4531534314155579 0.578848659992218 0.7418596744537354 1",
}
ERRORS = [  # signed, block, mean squared error on N(0, 1) from 16.8 M samples
    (False, 32, 0.006871),
    (False, 64, 0.007992),
    (False, 128, 0.008927),
    (True, 32, 0.006330),
    (True, 64, 0.007349),
    (True, 128, 0.008188),
]


def numbers(text: str) -> list[float]:
    return [float(x) for x in text.split()]


def test_levels_are_those_of_the_papers_quadrature() -> None:
    np.testing.assert_allclose(block_levels(4, 64, False), numbers(THEORETICAL), rtol=0, atol=5e-6)


@pytest.mark.parametrize("block", SIGNED)
def test_signed_levels_are_those_of_the_papers_samples(block: int) -> None:
    # the worst, of blocks of 32, is 2.9e-4; the paper's own two ways differ by 1.3e-4 for 64
    np.testing.assert_allclose(block_levels(4, block, True), numbers(SIGNED[block]), rtol=0, atol=3e-4)


@pytest.mark.parametrize(("signed", "block", "want"), ERRORS)
def test_error_on_normal_weights(signed: bool, block: int, want: float) -> None:
    w = torch.randn(4096, 1024, generator=torch.Generator().manual_seed(20))
    cells = (BOF(4, block, "float32", signed).quantize(w).decode() - w).reshape(-1, block).square().mean(1)
    error = float(cells.std()) / len(cells) ** 0.5  # of the mean
    assert error < 2e-3 * want
    assert abs(float(cells.mean()) - want) < 4.5 * 1.12 * error + 5e-7  # the constant has half our error of its own


@pytest.mark.parametrize("signed", [False, True])
def test_zeros_and_the_largest_of_a_group_are_exact(signed: bool) -> None:
    w = gaussian(16, 128)
    w[3] = -w[3]
    w[:, ::7] = 0
    decoded = BOF(4, 32, "float32", signed).quantize(w).decode()
    cells, got = w.view(16, 4, 32), decoded.view(16, 4, 32)
    place = cells.abs().argmax(-1, keepdim=True)
    assert torch.equal(got.gather(-1, place), cells.gather(-1, place))
    assert not decoded[:, ::7].any()


def test_a_weight_and_its_negative_have_the_same_codes_under_signed_scales() -> None:
    w = gaussian(8, 128)
    a, b = (BOF(3, 32, "float16", True).quantize(x) for x in (w, -w))
    assert torch.equal(a.codes, b.codes)
    assert torch.equal(a.scale, -b.scale)
    assert (a.scale < 0).any()
    assert (a.scale > 0).any()


def test_codes_are_the_nearest_of_the_stored_grid_even_where_scales_are_negative() -> None:
    w = gaussian(16, 256)
    stored = METHODS["bof4s-g64-dq"].quantize(w)
    assert torch.equal(Grid.of(stored).codes(w), stored.unpacked())
    table = stored.levels[0] * stored.scale.decode()[..., None]
    best = (w.view(16, 4, 64, 1) - table[:, :, None]).abs().amin(-1)
    torch.testing.assert_close((stored.decode() - w).abs().view(16, 4, 64), best, rtol=0, atol=1e-7)


def test_the_better_levels_cost_no_bit_and_beat_nf4() -> None:
    w = torch.randn(512, 1024, generator=torch.Generator().manual_seed(1))
    nf4, bof, signed = (METHODS[m].quantize(w) for m in ("nf4-g64-dq", "bof4-g64-dq", "bof4s-g64-dq"))
    assert nf4.bits_per_weight == bof.bits_per_weight == signed.bits_per_weight == 4.126953125
    errors = [float((q.decode() - w).square().mean()) for q in (nf4, bof, signed)]
    assert errors[1] < 0.955 * errors[0]  # .007992 / .008453
    assert errors[2] < 0.93 * errors[1]  # .007349 / .007992


@pytest.mark.parametrize("group", [7, 64, "channel", "tensor"])
@pytest.mark.parametrize("signed", [False, True])
def test_any_group_has_its_own_table_and_beats_quantiles(group: int | str, signed: bool) -> None:
    w = torch.randn(64, 420, generator=torch.Generator().manual_seed(2))
    error, quantiles = (
        float((q.quantize(w).decode() - w).square().mean())
        for q in (BOF(4, group, "float32", signed), NF(4, group, "float32"))
    )
    assert error < quantiles


def test_settings_are_checked() -> None:
    for bad in ({"bits": 1}, {"bits": 9}, {"group": 0}, {"scale": "int8"}, {"scale": "e8m0", "signed": True}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            BOF(**bad)
