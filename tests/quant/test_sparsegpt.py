"""SparseGPT: masks and updates against brute force, exact counts, and rounding in the same sweep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant import METHODS, Calibration
from quant.feedback import Feedback
from quant.methods.kmeans import KMeans
from quant.methods.nf4 import NF
from quant.methods.none import Unquantized
from quant.methods.prune import Magnitude
from quant.methods.sparsegpt import SparseGPT
from quant.methods.uniform import Uniform
from quant.methods.wanda import Wanda
from tests.quant.samples import calibration_of, gaussian, inputs

EXACT = Unquantized("float32")
N, K = 48, 192


def moment(k: int) -> Tensor:
    x = inputs(4 * k, k)
    return x.T @ x / len(x)


def loss(got: Tensor, weight: Tensor, h: Tensor) -> float:
    e = (got - weight).double()
    return float(((e @ h.double()) * e).sum())


@pytest.mark.parametrize("sparsity", [0.3, "2:4", "1:4"])
def test_masks_and_updates_are_those_of_one_column_after_the_other(sparsity):
    """Four columns and one row at a time: the cost of each weight, and where the others move, by inversion."""
    h = moment(4).double()
    for seed in range(6):
        w = gaussian(1, 4, seed).double()
        now, gone = w[0].clone(), set()
        inverse = [torch.linalg.inv(h[i:, i:]) for i in range(4)]
        cost = torch.stack([now[i] ** 2 / inverse[i][0, 0] for i in range(4)])
        count = round(sparsity * 4) if isinstance(sparsity, float) else 4 - int(sparsity[0])
        gone = set(cost.argsort()[:count].tolist())
        for i in range(4):
            if i in gone:
                now[i + 1 :] -= now[i] / inverse[i][0, 0] * inverse[i][0, 1:]
                now[i] = 0.0
        method = SparseGPT(sparsity, EXACT, damp=0.0)
        got = method.quantize(w.float(), Calibration(h.float())).decode()
        torch.testing.assert_close(got, now[None].float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("values", [EXACT, Uniform(4, 64), NF(), KMeans(4)])
def test_counts_are_exact_in_every_block_of_columns(share, values):
    w, known = gaussian(7, 75), calibration_of(7, 75)
    stored = SparseGPT(share, values, block=32).quantize(w, known)
    gone = ~stored.kept()
    assert int(gone.sum()) == round(share * w.numel())
    assert not stored.decode()[gone].any()
    for first in (0, 32, 64):
        assert abs(int(gone[:, first : first + 32].sum()) - share * gone[:, first : first + 32].numel()) <= 1


def test_independent_inputs_leave_a_patterns_weights_as_wanda_keeps_them():
    h = torch.diag(torch.rand(K, generator=torch.Generator().manual_seed(1)) + 0.1)
    w = gaussian(N, K)
    for values in (EXACT, Uniform(4, 64)):
        got = SparseGPT("2:4", values, damp=0.0).quantize(w, Calibration(h)).decode()
        assert torch.equal(got, Wanda("2:4", values).quantize(w, Calibration(h)).decode())


@pytest.mark.parametrize("sparsity", [0.5, "2:4", "4:8"])
def test_it_loses_less_than_wanda_and_wanda_less_than_magnitude(sparsity):
    w, known = gaussian(N, K), calibration_of(N, K)
    h = known.second_moment
    got = loss(SparseGPT(sparsity).quantize(w, known).decode(), w, h)
    wanda = loss(Wanda(sparsity).quantize(w, known).decode(), w, h)
    assert got < 0.8 * wanda
    if sparsity == 0.5:
        assert wanda < 0.8 * loss(Magnitude(0.5).quantize(w).decode(), w, h)


@pytest.mark.parametrize("sparsity", [0.5, "2:4", "4:8", "3:7"])
@pytest.mark.parametrize("values", [Uniform(4, 64), Uniform(3, 24, zero="integer"), NF(4, 64), KMeans(3, 0)])
def test_rounding_in_the_sweep_loses_less_than_rounding_after_it(sparsity, values):
    block = 126 if sparsity == "3:7" else 128
    w, known = gaussian(N, K), calibration_of(N, K)
    h = known.second_moment
    exact = SparseGPT(sparsity, EXACT, block).quantize(w, known)
    kept = exact.values.decode()
    joint = SparseGPT(sparsity, values, block).quantize(w, known)
    after = type(exact)(**{**vars(exact), "values": values.quantize(kept)})
    assert loss(joint.decode(), w, h) < 0.9 * loss(after.decode(), w, h)
    assert joint.bits_per_weight == after.bits_per_weight
    assert joint.config() == after.config()


def test_the_joint_2_of_4_weight_is_made_of_its_own_codes():
    k = 256
    w, known = gaussian(N, k), calibration_of(N, k)
    q = METHODS["sparsegpt-2of4-int4-g64"].quantize(w, known)
    assert q.bits_per_weight == 1 + 4.25 / 2
    cells = q.decode().reshape(N, -1, 4)
    assert int((cells != 0).sum(2).max()) <= 2
    steps = q.values.decode() / q.values.scale.float().repeat_interleave(64, 1)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


def test_alike_weights_do_not_grow_beyond_twice_their_size():
    known = calibration_of(N, K)
    for sparsity in (0.5, "2:4"):
        assert SparseGPT(sparsity).quantize(torch.ones(N, K), known).decode().abs().max() <= 2


def test_dead_inputs_go_first_and_fewer_samples_than_columns_do():
    x = inputs(20, 64)
    x[:, [3, 9]] = 0
    h = x.T @ x / len(x)
    w = gaussian(6, 64)
    got = SparseGPT(0.25).quantize(w, Calibration(h))
    assert not got.decode()[:, [3, 9]].any()
    assert loss(got.decode(), w, h) < loss(Wanda(0.25).quantize(w, Calibration(h)).decode(), w, h)
    assert bool(Feedback.of(h).dead[[3, 9]].all())


def test_settings_are_checked():
    for make in (
        lambda: SparseGPT(1.5),
        lambda: SparseGPT("4:2"),
        lambda: SparseGPT("2:4", block=6),
        lambda: SparseGPT(damp=-1.0),
        lambda: SparseGPT(values=SparseGPT()),
    ):
        with pytest.raises(ValueError):
            make()
