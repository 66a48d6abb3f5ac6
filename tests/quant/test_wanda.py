"""Wanda: what is kept is the best choice for independent inputs; exact counts; magnitude where inputs are alike."""

from __future__ import annotations

import itertools

import pytest
import torch

from quant import METHODS, Calibration
from quant.methods.gptq import GPTQ
from quant.methods.none import Unquantized
from quant.methods.prune import NOfM, pattern
from quant.methods.uniform import Uniform
from quant.methods.wanda import Wanda
from tests.quant.samples import calibration_of, gaussian

EXACT = Unquantized("float32")


def scales(k: int) -> torch.Tensor:
    return 10.0 ** torch.randn(k, generator=torch.Generator().manual_seed(3))


def test_no_other_choice_in_a_row_loses_less_with_independent_inputs():
    w, h = gaussian(5, 8), scales(8)
    got = Wanda(0.375, EXACT).quantize(w, Calibration(h.diag())).decode()
    lost = ((w - got).square() * h).sum(1)
    for gone in itertools.combinations(range(8), 3):
        assert bool((lost <= (w[:, gone].square() * h[list(gone)]).sum(1) * (1 + 1e-6)).all())


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.7, 1.0])
def test_every_row_loses_the_same_number_of_weights_and_those_of_lowest_score(share):
    w, known = gaussian(11, 90), calibration_of(11, 90)
    stored = Wanda(share).quantize(w, known)
    kept = stored.kept()
    assert (~kept).sum(1).tolist() == [round(share * 90)] * 11
    score = w.abs() * known.second_moment.diagonal().sqrt()
    if 0 < share < 1:
        last = torch.where(kept, 0, score).amax(1)
        assert bool((last <= torch.where(kept, score, torch.inf).amin(1)).all())
    assert torch.equal(stored.decode(), torch.where(kept, w.bfloat16().float(), 0))


def test_a_pattern_compares_scores_inside_each_run():
    w, h = gaussian(7, 26), scales(26)
    got = Wanda("2:4", EXACT).quantize(w, Calibration(h.diag())).decode()
    score = torch.nn.functional.pad(w.abs() * h.sqrt(), (0, 2), value=-1.0).reshape(7, -1, 4)
    best = score.topk(2).indices
    want = torch.zeros_like(score, dtype=torch.bool).scatter_(2, best, True).flatten(1)[:, :26]
    assert torch.equal(got, torch.where(want, w, 0))


def test_alike_inputs_leave_magnitude_pruning():
    w = gaussian(9, 64).bfloat16().float()  # ties are certain
    known = Calibration.neutral(9, 64)
    got, want = Wanda("2:4").quantize(w, known), NOfM(2, 4).quantize(w)
    assert all(torch.equal(t, want.stored()[name]) for name, t in got.stored().items())


def test_of_equal_scores_the_first_go():
    got = Wanda(0.5, EXACT).quantize(torch.ones(2, 4), Calibration.neutral(2, 4)).decode()
    assert got.tolist() == [[0, 0, 1, 1]] * 2


def test_weights_of_dead_inputs_go_first():
    known = Calibration(torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0])))
    assert not Wanda(0.25).quantize(gaussian(6, 4), known).decode()[:, 1].any()


def test_bits():
    w, known = gaussian(8, 256), calibration_of(8, 256)
    assert Wanda(0.5).quantize(w, known).bits_per_weight == 9.0
    assert Wanda("2:4").quantize(w, known).bits_per_weight == 9.0
    assert Wanda("2:4", Uniform(4, 64)).quantize(w, known).bits_per_weight == 1 + 4.25 / 2


def test_patterns_and_shares_are_told_apart():
    assert (pattern("4:8"), pattern(0.3)) == ((4, 8), None)
    for wrong in ("half", "2:", "5:4", "1:1000", 1.5, -0.1):
        with pytest.raises(ValueError):
            Wanda(wrong)
    with pytest.raises(ValueError, match="values cannot be GPTQ: it needs second_moment"):
        Wanda(0.5, GPTQ(Uniform()))
    assert METHODS["wanda-50"].needs == {"second_moment"}
