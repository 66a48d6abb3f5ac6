"""LNQ: neither step raises the loss, levels are the least squares, and small layers against the exact optimum."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from quant import METHODS, Calibration
from quant.levels import nearest_codes
from quant.methods import lnq
from quant.methods.gptq import GPTQ
from quant.methods.kmeans import KMeans
from quant.methods.lnq import LNQ, descend, fit_levels
from tests.quant.samples import calibration_of, gaussian, inputs

N, K = 32, 160


@pytest.fixture(params=["compiled", "plain"], autouse=True)
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(lnq, "compiled", lambda: None)


def moment(k: int) -> Tensor:
    x = inputs(4 * k, k)
    return x.T @ x / len(x)


def values(levels: Tensor, codes: Tensor) -> Tensor:
    return levels.float().gather(1, codes.long())


def loss(got: Tensor, weight: Tensor, h: Tensor) -> Tensor:
    """e H e^T of every row."""
    e = (got - weight).double()
    return ((e @ h.double()) * e).sum(1)


def start(w: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Evenly spaced levels and their nearest codes: far from any optimum."""
    size = w.abs().amax(1, keepdim=True)
    levels = (torch.linspace(-1, 1, 1 << bits) * size).half()
    return levels, nearest_codes(w, levels, 1)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_no_step_raises_the_loss_of_any_row(bits):
    w, h = gaussian(N, K), moment(K)
    levels, codes = start(w, bits)
    before = loss(values(levels, codes), w, h)
    first = before
    for _ in range(3):
        levels, codes = fit_levels(w, h, levels, codes)
        for _ in range(2):
            after = loss(values(levels, codes), w, h)
            assert bool((after <= before * (1 + 1e-5)).all())  # float32 gradients of 160 columns
            before = after
            codes = descend(w, h, levels, codes)
    assert bool((loss(values(levels, codes), w, h) < 0.7 * first).all())
    assert bool((levels[:, 1:] >= levels[:, :-1]).all())


def test_compiled_loops_find_just_what_plain_ones_do(monkeypatch):
    """Small integers and powers of two, so that no sum is rounded, in whatever order it is made."""
    n, k = 70, 1100
    generator = torch.Generator().manual_seed(0)
    h = torch.randint(-2, 3, (k, k), generator=generator).float()
    h = h + h.T
    h.diagonal().copy_(2.0 ** torch.randint(5, 9, (k,), generator=generator))
    h.diagonal()[9] = 0
    w = torch.randint(-64, 65, (n, k), generator=generator) / 64
    levels = torch.tensor([-1.0, -0.25, 0.125, 0.75]).half() * 2.0 ** torch.randint(-1, 2, (n, 1), generator=generator)
    codes = torch.randint(0, 4, (n, k), generator=generator).to(torch.uint8)
    fast = lnq.totals(h, codes, 4), descend(w, h, levels, codes, 3)
    monkeypatch.setattr(lnq, "compiled", lambda: None)
    assert torch.equal(fast[0], lnq.totals(h, codes, 4))
    assert torch.equal(fast[1], descend(w, h, levels, codes, 3))
    assert 0.1 < float((fast[1] != codes).float().mean()) < 0.9
    chosen = torch.nn.functional.one_hot(codes[-1].long(), 4).float()
    assert torch.equal(fast[0][-1], (chosen.T @ h @ chosen).double())


def test_levels_are_the_least_squares_of_their_codes():
    w, h = gaussian(4, 24), moment(24)
    levels, codes = start(w, 2)
    found, again = fit_levels(w, h, levels.float(), codes)
    root = torch.linalg.cholesky(h.double()).T
    for r in range(4):
        chosen = torch.nn.functional.one_hot(codes[r].long(), 4).double()
        used = chosen.any(0)
        want = torch.linalg.lstsq(root @ chosen[:, used], root @ w[r].double()[:, None]).solution[:, 0]
        kept = torch.cat([want, levels[r].double()[~used]]).sort().values  # a level of no weight stays
        torch.testing.assert_close(found[r].double(), kept, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(values(found, again)[r].double(), chosen[:, used] @ want, rtol=1e-4, atol=1e-6)


def test_after_convergence_no_single_code_can_be_bettered():
    w, h = gaussian(6, 20), moment(20)
    levels, codes = start(w, 2)
    for _ in range(30):
        codes = descend(w, h, levels, codes)
    reached = loss(values(levels, codes), w, h)
    for column, code in itertools.product(range(20), range(4)):
        other = codes.clone()
        other[:, column] = code
        assert bool((loss(values(levels, other), w, h) >= reached * (1 - 1e-5)).all())


def test_small_rows_come_near_the_best_of_all_assignments():
    w = gaussian(12, 6)
    h = moment(6)
    got = loss(LNQ(1, turns=4, damp=0.0).quantize(w, Calibration(h)).decode(), w, h)
    root = torch.linalg.cholesky(h.double()).T
    best = torch.full((12,), torch.inf, dtype=torch.float64)
    for bits in itertools.product((0, 1), repeat=6):
        chosen = torch.nn.functional.one_hot(torch.tensor(bits), 2).double()
        chosen = root @ chosen[:, chosen.any(0)]
        target = root @ w.double().T
        rest = target - chosen @ torch.linalg.lstsq(chosen, target).solution
        best = torch.minimum(best, rest.square().sum(0))
    assert bool((got >= best * (1 - 1e-3)).all())  # levels are stored in float16
    assert float(got.sum() / best.sum()) < 1.5  # descent ends in a local optimum
    assert int((got <= best * 1.01).sum()) >= 4


@pytest.mark.parametrize("bits", [2, 3])
def test_it_loses_less_than_kmeans_and_than_error_feedback_over_kmeans(bits):
    w, known = gaussian(N, K), calibration_of(N, K)
    h = known.second_moment
    got = [
        float(loss(method.quantize(w, known).decode(), w, h).sum())
        for method in (LNQ(bits), GPTQ(KMeans(bits, 1)), KMeans(bits, 1))
    ]
    assert got[0] < 0.9 * got[1] < 0.5 * got[2]
    assert LNQ(bits).quantize(w, known).bits_per_weight == KMeans(bits, 1).quantize(w).bits_per_weight


def test_with_independent_equal_inputs_it_stays_at_the_exact_optimum():
    w = gaussian(N, K)
    got = LNQ(3).quantize(w, Calibration.neutral(N, K))
    want = KMeans(3, 1).quantize(w)
    assert torch.equal(got.unpacked(), want.unpacked())
    torch.testing.assert_close(got.decode(), want.decode(), rtol=2e-3, atol=1e-6)  # levels within float16


def test_rows_do_not_depend_on_each_other():
    w, known = gaussian(9, K), calibration_of(9, K)
    whole = LNQ(2).quantize(w, known).decode()
    alone = torch.cat([LNQ(2).quantize(w[i : i + 3], Calibration(known.second_moment)).decode() for i in (0, 3, 6)])
    assert float((whole != alone).any(1).float().mean()) <= 0.2  # products of another size may tip a tie


def test_dead_inputs_zero_rows_one_column_and_no_inputs():
    x = inputs(640, K)
    x[:, 7] = 0
    w = gaussian(8, K)
    w[2] = 0
    got = LNQ(2).quantize(w, Calibration(x.T @ x / len(x))).decode()
    assert got.isfinite().all()
    assert not got[2].any()
    for k, h in ((1, torch.ones(1, 1)), (5, torch.zeros(5, 5))):
        w = gaussian(4, k)
        torch.testing.assert_close(LNQ(3).quantize(w, Calibration(h)).decode(), w, rtol=1e-3, atol=0)


def test_settings_are_checked():
    for make in (lambda: LNQ(0), lambda: LNQ(9), lambda: LNQ(3, turns=-1), lambda: LNQ(3, damp=-1.0)):
        with pytest.raises(ValueError):
            make()
    assert METHODS["lnq-3bit"].needs == {"second_moment"}
