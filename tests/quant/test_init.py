"""Starts of adapters: the published errors, optimality, and that no start is worse than none."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from quant import METHODS, Calibration, QuantizedTensor
from quant.init import INITS, LQ, EoRA, LoftQ, QPiSSA
from quant.init.base import PLAIN, Norm, Start, random_a
from quant.init.eora import output_norm
from quant.init.lowrank import nearest_of_rank
from quant.init.lq import fisher_norm
from tests.quant.samples import calibration_of, gaussian

N, RANK = 1024, 16


def noise(seed: int = 0) -> Tensor:
    return torch.randn(N, N, generator=torch.Generator().manual_seed(seed))


def power_law() -> Tensor:
    """Singular values i ** -0.5 between random orthogonal matrices."""
    u, v = (torch.linalg.qr(noise(seed))[0] for seed in (1, 2))
    return (u * torch.arange(1, N + 1) ** -0.5) @ v.T


def left(weight: Tensor, start: Start) -> Tensor:
    return weight - start.base.decode() - start.B @ start.A


def ratio(weight: Tensor, method: str, init: QPiSSA) -> float:
    """||W - Q - B A||^2 / ||W - q(W)||^2."""
    plain = weight - METHODS[method].quantize(weight).decode()
    return float(left(weight, init(weight, METHODS[method], None, RANK, 0)).square().sum() / plain.square().sum())


# Recomputed from the definition with another draw of W and groups of the flattened tensor; over draws a ratio moves by
# less than 0.002 in the first round and, as small differences add up, by 0.004 in the fifth.
@pytest.mark.parametrize(
    ("spectrum", "method", "errors"),
    [
        ("iid", "nf4-g64", (0.9413, 0.8869, 0.8580, 0.8395, 0.8262)),
        ("iid", "nf3-g64", (0.9414, 0.8905, 0.8649, 0.8491, 0.8385)),
        ("iid", "nf2-g64", (0.9016, 0.8216, 0.7931, 0.7804, 0.7749)),
        ("power", "nf4-g64", (0.9365, 0.8842, 0.8561, 0.8374, 0.8242)),
        ("power", "nf2-g64", (0.8955, 0.8031, 0.7648, 0.7455, 0.7341)),
    ],
)
def test_loftq_leaves_the_published_errors(spectrum: str, method: str, errors: tuple[float, ...]) -> None:
    weight = noise() if spectrum == "iid" else power_law()
    asked: list[Tensor] = []
    bases: list[Tensor] = []

    class Recorded:
        def quantize(self, rest: Tensor, calibration: Calibration | None) -> QuantizedTensor:
            base = METHODS[method].quantize(rest)
            asked.append(rest)
            bases.append(base.decode())
            return base

    start = LoftQ(len(errors))(weight, Recorded(), None, RANK, 0)  # type: ignore[arg-type]
    assert torch.equal(asked[0], weight)
    # a round is given W less the B A of the round before, so that less that round's Q is what it left
    rest = [*(new - base for new, base in zip(asked[1:], bases[:-1], strict=True)), left(weight, start)]
    plain = (weight - bases[0]).square().sum()
    assert [float(e.square().sum() / plain) for e in rest] == pytest.approx(errors, abs=0.005)


def test_qpissa_leaves_what_the_principal_part_does_not_hold() -> None:
    weight = power_law()
    values = 1 / torch.arange(1, N + 1)
    held = float(values[:RANK].sum() / values.sum())
    assert 1 - held == pytest.approx(0.5498, abs=1e-3)
    # the quantizer's error is in proportion to what it is given, up to 1 % for the draw of 2**20 weights
    assert ratio(weight, "nf4-g64", QPiSSA()) == pytest.approx(0.548, abs=0.005)


@pytest.mark.parametrize(("rank", "columns", "share"), [(8, 1024, 0.0300), (16, 1024, 0.0587), (16, 768, 0.0766)])
def test_the_energy_share_of_the_leading_directions_of_noise(rank: int, columns: int, share: float) -> None:
    e = torch.randn(columns, columns, generator=torch.Generator().manual_seed(3))
    b, a = nearest_of_rank(e, rank)
    assert float((b @ a).square().sum() / e.square().sum()) == pytest.approx(share, rel=0.01)  # one draw


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (60, 60)])
def test_the_nearest_of_a_rank_is_the_truncated_svd_and_level(shape: tuple[int, int]) -> None:
    e = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    b, a = nearest_of_rank(e, 5)
    u, s, v = torch.linalg.svd(e.double(), full_matrices=False)
    assert torch.allclose((b @ a).double(), (u[:, :5] * s[:5]) @ v[:5], atol=1e-4)
    assert torch.allclose(b.norm(dim=0), a.norm(dim=1), rtol=1e-4)


def test_a_large_matrix_loses_less_than_the_stated_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    e = noise()[:, :900].contiguous()
    exact = nearest_of_rank(e, RANK)
    monkeypatch.setattr("quant.init.lowrank.EXACT", 100)
    found = nearest_of_rank(e, RANK)
    best, got = (float((b @ a).square().sum()) for b, a in (exact, found))
    assert 0.997 * best < got < best * (1 + 1e-5)
    assert torch.equal(nearest_of_rank(e, RANK)[0], found[0])


@pytest.mark.parametrize("e", [torch.zeros(20, 30), torch.ones(20, 30), torch.eye(6)[:, :1]])
def test_a_matrix_of_lower_rank_gives_fewer_columns(e: Tensor) -> None:
    b, a = nearest_of_rank(e, 4)
    assert b.shape[1] == a.shape[0] == int(torch.linalg.matrix_rank(e))
    assert torch.allclose(b @ a, e, atol=1e-5)


def shaken(norm: Norm, rest: Tensor, start: Start, trials: int = 40) -> list[float]:
    """The norm of `rest` - B A with A and B moved at random, by steps of many sizes."""
    generator = torch.Generator().manual_seed(5)
    out = []
    for trial in range(trials):
        size = 10.0 ** (-trial % 5)
        a, b = (
            f + size * f.norm() / f.numel() ** 0.5 * torch.randn(f.shape, generator=generator)
            for f in (start.A, start.B)
        )
        out.append(norm.of(rest - b @ a))
    return out


@pytest.mark.parametrize("name", ["eora", "lq"])
def test_a_weighed_start_is_the_best_in_its_norm_and_beats_the_unweighed(name: str) -> None:
    weight, known = gaussian(48, 96), calibration_of(48, 96)
    sizes = torch.logspace(-2, 2, 48)[:, None] * torch.logspace(2, -2, 96)  # rows and columns that matter unequally
    known = dataclasses.replace(known, fisher=known.fisher * sizes)  # type: ignore[operator]
    norm = output_norm(known.second_moment) if name == "eora" else fisher_norm(known.fisher)  # type: ignore[arg-type]
    init = EoRA() if name == "eora" else LQ(1)
    start = init(weight, METHODS["uniform-int2-asym-g64"], known, 6, 0)
    rest = weight - start.base.decode()
    reached = norm.of(left(weight, start))
    assert min(shaken(norm, rest, start)) > reached
    b, a = PLAIN.best(rest, 6)
    assert norm.of(rest - b @ a) > 1.02 * reached


def test_eora_is_the_error_of_the_outputs() -> None:
    known = calibration_of(8, 32)
    e, norm = gaussian(8, 32), output_norm(known.second_moment)  # type: ignore[arg-type]
    assert norm.of(e) ** 2 == pytest.approx(float((e @ known.second_moment @ e.T).trace()), rel=1e-4)  # type: ignore[operator]


@pytest.mark.parametrize("name", sorted(set(INITS) - {"plain"}))
@pytest.mark.parametrize("method", ["uniform-int2-asym-g64", "nf2-g64", "kmeans-2bit-row", "prune-50", "mxfp4"])
def test_no_start_is_worse_than_none_in_its_norm(name: str, method: str) -> None:
    weight, known = gaussian(64, 128), calibration_of(64, 128)
    norms = {"eora": output_norm(known.second_moment), "lq": fisher_norm(known.fisher)}  # type: ignore[arg-type]
    norm = norms.get(name, PLAIN)
    plain = norm.of(weight - METHODS[method].quantize(weight).decode())
    assert norm.of(left(weight, INITS[name](weight, METHODS[method], known, 8, 0))) < plain


@pytest.mark.parametrize("init", [LoftQ, EoRA, LQ, QPiSSA])
def test_more_rounds_are_never_worse(init: type) -> None:
    weight, known = gaussian(64, 128), calibration_of(64, 128)
    norms = {EoRA: output_norm(known.second_moment), LQ: fisher_norm(known.fisher)}  # type: ignore[arg-type]
    errors = [
        norms.get(init, PLAIN).of(left(weight, init(rounds)(weight, METHODS["nf2-g64"], known, 8, 0)))
        for rounds in (1, 2, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_the_alternation_ends_when_the_error_rises() -> None:
    weight = gaussian(64, 128)
    asked: list[Tensor] = []

    class Spy:
        def quantize(self, rest: Tensor, calibration: Calibration | None) -> object:
            asked.append(rest)
            worse = 3.0 if len(asked) == 3 else 1.0
            return METHODS["nf2-g64"].quantize(rest * worse)

    start = LoftQ(9)(weight, Spy(), None, 4, 0)  # type: ignore[arg-type]
    assert len(asked) == 3
    assert torch.equal(start.base.decode(), METHODS["nf2-g64"].quantize(asked[1]).decode())


@pytest.mark.parametrize("name", sorted(INITS))
def test_degenerate_layers_start_finite_and_can_learn(name: str) -> None:
    singular = calibration_of(12, 32, rows=5)
    dead = singular.second_moment.clone()  # type: ignore[union-attr]
    dead[3], dead[:, 3] = 0, 0
    fisher = singular.fisher.clone()  # type: ignore[union-attr]
    fisher[2], fisher[:, 7] = 0, 0
    known = Calibration(dead, singular.magnitude, fisher, 5)
    nothing = Calibration(torch.zeros(32, 32), torch.zeros(32), torch.zeros(12, 32), 1)
    for weight in (gaussian(12, 32), torch.zeros(12, 32), gaussian(12, 32) * (torch.arange(12) > 5)[:, None]):
        for method in ("nf2-g64", "fp32"):
            for calibration in (known, nothing):
                start = INITS[name](weight, METHODS[method], calibration, 16, 0)
                assert start.A.shape == (16, 32)
                assert start.B.shape == (12, 16)
                assert bool(torch.isfinite(start.A).all() and torch.isfinite(start.B).all())
                assert bool(((start.A != 0).any(1) | (start.B != 0).any(0)).all())
                plain = weight - METHODS[method].quantize(weight).decode()
                assert left(weight, start).norm() <= 30 * plain.norm() + 1e-5


@pytest.mark.parametrize("name", sorted(set(INITS) - {"qpissa"}))
def test_over_an_exact_base_every_start_is_the_plain_one(name: str) -> None:
    weight = gaussian(12, 32)
    start = INITS[name](weight, METHODS["fp32"], calibration_of(12, 32), 4, 7)
    assert torch.equal(start.A, random_a(4, 32, 7))
    assert not start.B.any()


@pytest.mark.parametrize("name", sorted(INITS))
def test_a_start_is_the_same_twice_and_leaves_its_arguments(name: str) -> None:
    weight, known = gaussian(12, 32), calibration_of(12, 32)
    before = weight.clone()
    one, two = (INITS[name](weight, METHODS["nf2-g64"], known, 4, 7) for _ in range(2))
    assert torch.equal(one.A, two.A)
    assert torch.equal(one.B, two.B)
    assert torch.equal(weight, before)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"EoRA needs the calibration's second_moment.*quant\.calibrate"):
        EoRA()(gaussian(4, 64), METHODS["nf2-g64"])
    with pytest.raises(ValueError, match="LQ needs the calibration's fisher"):
        LQ()(gaussian(4, 64), METHODS["nf2-g64"], Calibration(second_moment=torch.eye(64)))
    for init in (LoftQ, EoRA, LQ):
        with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
            init(0)
    with pytest.raises(ValueError, match="rounds must not be negative, got -1"):
        QPiSSA(-1)
    assert all(init.source and init.idea for init in INITS.values())


def test_the_fisher_norm_is_the_weighted_error_where_rows_and_columns_factor() -> None:
    """With F_ij = f_i g_j, sum F E^2 is the squared norm, up to the scale of F."""
    generator = torch.Generator().manual_seed(0)
    f, g = (torch.rand(size, generator=generator) + 0.1 for size in (12, 40))
    fisher = f[:, None] * g
    for seed in (1, 2):
        e = gaussian(12, 40, seed)
        want = float((fisher / fisher.mean() * e**2).sum())
        assert fisher_norm(fisher).of(e) ** 2 == pytest.approx(want, rel=1e-4)
