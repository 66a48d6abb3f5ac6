"""AWQ: never worse than its inner method in the error of the outputs, better where some inputs are larger."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from quant import METHODS, Calibration, QuantizedTensor, Quantizer
from quant.formats import Scaled
from quant.methods.awq import ALPHAS, AWQ, behind, factors, output_error
from quant.methods.double import DynamicMap
from quant.methods.fp4 import MXFP4
from quant.methods.kmeans import KMeans
from quant.methods.nf4 import NF
from quant.methods.search import Searched
from quant.methods.uniform import Uniform
from tests.quant.samples import calibration_of, gaussian, inputs

N, K = 32, 160
INNER: dict[str, Quantizer] = {
    "int4": Uniform(4, 64, "integer"),
    "int3": Uniform(3, 64),
    "int4 a row": Uniform(4, "channel"),
    "nf4": NF(),
    "k-means": KMeans(3, 1),
    "searched by inputs": Searched(Uniform(3, 32), "inputs"),
}


def alike(k: int = K) -> Calibration:
    return Calibration(torch.eye(k), torch.ones(k), None, 4 * k)


def error(q: QuantizedTensor, w: Tensor, known: Calibration) -> float:
    assert known.second_moment is not None
    return output_error(q.decode() - w, known.second_moment)


@pytest.mark.parametrize(
    "inner", [*INNER.values(), Uniform(4, "tensor"), NF(scale=DynamicMap()), KMeans(3, 16), KMeans(3, 0), MXFP4()]
)
def test_blocks_of_rows_decide_as_the_whole_weight_does(monkeypatch: pytest.MonkeyPatch, inner: Quantizer) -> None:
    w, known = gaussian(37, K), calibration_of(37, K)
    whole = AWQ(inner).quantize(w, known).decode()
    monkeypatch.setattr("quant.rows.CACHED", 5 * K)
    assert torch.equal(AWQ(inner).quantize(w, known).decode(), whole)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("name", sorted(INNER))
def test_better_than_its_inner_method_where_some_inputs_are_larger(name: str, clip: bool) -> None:
    w, known = gaussian(N, K), calibration_of(N, K)  # every sixteenth input is ten times the others
    plain, awq = INNER[name].quantize(w, known), AWQ(INNER[name], clip).quantize(w, known)
    assert error(awq, w, known) < 0.8 * error(plain, w, known)
    assert awq.nbytes == plain.nbytes + 2 * K


@pytest.mark.parametrize("name", sorted(INNER))
def test_never_worse_whatever_the_inputs(name: str) -> None:
    for seed in range(3):
        w = gaussian(8, K, seed)
        x = inputs(20, K, seed, rho=0.3)  # fewer rows than columns: the second moment is singular
        x[:, 5] = 0
        known = Calibration(x.T @ x / 20, x.abs().mean(0), None, 20)
        assert error(AWQ(INNER[name]).quantize(w, known), w, known) <= error(INNER[name].quantize(w, known), w, known)


def test_clipping_is_dropped_where_errors_of_groups_had_cancelled() -> None:
    """Inputs that are one and the same add the errors of all columns up; groups look at their own sums only."""
    known = Calibration(torch.ones(32, 32) + 0.01 * torch.eye(32), torch.ones(32), None, 1000)
    inner = Uniform(3, 8)
    for seed in (6, 22, 42, 45, 47):  # one in six draws has groups whose errors cancel until they are clipped
        w = gaussian(1, 32, seed)
        assert error(AWQ(inner).quantize(w, known), w, known) <= error(inner.quantize(w), w, known)


def test_factors_are_one_where_all_channels_are_alike() -> None:
    w = gaussian(N, K)
    q = AWQ(Uniform(4, 64), clip=False).quantize(w, alike())
    assert isinstance(q, Scaled)
    assert torch.equal(q.columns, torch.ones(1, K).half())
    assert torch.equal(q.decode(), Uniform(4, 64).quantize(w).decode())


def test_the_alpha_taken_is_the_best_of_twenty() -> None:
    w, known = gaussian(N, K), calibration_of(N, K)
    inner = Uniform(3, 64, "integer")
    assert known.magnitude is not None
    tried = []
    for alpha in ALPHAS:
        s = known.magnitude.double() ** alpha
        columns = (1 / (s / (s.max() * s.min()).sqrt())).half().float()
        tried.append(output_error(inner.quantize(w / columns).decode() * columns - w, known.second_moment))
    assert len(tried) == 20
    assert 0 < tried.index(min(tried)) < 19
    got = AWQ(inner, clip=False).quantize(w, known)
    assert error(got, w, known) == pytest.approx(min(tried), rel=1e-5)


def test_clipping_takes_the_best_share_of_each_group() -> None:
    """With independent inputs a group's error is all that counts: the search by hand, group by group."""
    w, inner = gaussian(6, 128), Uniform(3, 64, scale="float32")
    got = AWQ(inner).quantize(w, alike(128)).decode()
    for row in range(6):
        for start in (0, 64):
            cell = w[row : row + 1, start : start + 64]
            bounds = [cell.abs().max() * (1 - i / 40) for i in range(21)]
            errors = [float((inner.quantize(cell.clamp(-b, b)).decode() - cell).square().sum()) for b in bounds]
            left = float((got[row : row + 1, start : start + 64] - cell).square().sum())
            assert left == pytest.approx(min(errors), rel=1e-4)


def test_a_calibration_behind_factors_is_that_of_the_scaled_inputs() -> None:
    x = inputs(400, 48).double()
    columns = factors(torch.linspace(1, 9, 48))
    known = Calibration((x.T @ x / 400).float(), x.abs().mean(0).float(), torch.ones(4, 48), 400)
    seen, y = behind(known, columns), x * columns.double()
    torch.testing.assert_close(seen.second_moment, (y.T @ y / 400).float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen.magnitude, y.abs().mean(0).float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen.fisher, columns.float().square().expand(4, 48))  # dL/d(w/c) = c dL/dw


def test_inputs_that_are_never_seen_do_not_decide_the_factors() -> None:
    w, known = gaussian(N, K), calibration_of(N, K)
    dead = torch.arange(K) % 7 == 0
    live = (~dead).float()
    changed = dataclasses.replace(
        known, magnitude=known.magnitude * live, second_moment=known.second_moment * live * live[:, None]
    )
    q = METHODS["awq-int3-g64"].quantize(w, changed)
    assert torch.isfinite(q.decode()).all()
    assert error(q, w, changed) < error(Uniform(3, 64, "integer").quantize(w), w, changed)
