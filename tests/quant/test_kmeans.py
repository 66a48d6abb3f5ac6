"""The one-dimensional k-means against an independent exact solver, and the optimum's known values."""

import dataclasses
import sys
from functools import cache

import kmeans1d as oracle
import numpy as np
import pytest
import torch

import quant
from quant.core import METHODS, Calibration
from quant.kmeans1d import MANY, SEARCHES, compiled, cost, kmeans1d
from quant.kmeans_bins import gathered
from quant.methods.kmeans import KMeans, optimal_levels
from quant.nearest import nearest
from tests.quant.samples import calibration_of, gaussian, quantize

RNG = np.random.default_rng


def optimum(x: np.ndarray, k: int) -> float:
    found = oracle.cluster(x.astype(float), k)
    return float(((x - np.array(found.centroids)[found.clusters]) ** 2).sum())


DRAWS = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "student3": lambda rng, shape: rng.standard_t(3, shape),
    "ties": lambda rng, shape: rng.integers(-300, 300, shape) / 64,
    "steps": lambda rng, shape: np.resize(np.arange(400.0), shape),  # equal gaps: many optima at one fee
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("n", [1, 2, 3, 17, 576, 1536])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 8, 16, 256])
def test_every_row_is_at_its_optimum(draw, n, k):
    x = DRAWS[draw](RNG(n * k), (6, n)).astype(np.float32)
    best = np.array([optimum(r, k) if len(np.unique(r)) > k else 0.0 for r in x])
    levels = kmeans1d(x, k, search="compiled")
    assert levels.shape == (6, k)
    assert (np.diff(levels) >= 0).all()
    np.testing.assert_allclose(cost(x, levels), best, rtol=1e-9, atol=1e-25 * n)  # rounding of float64 sums


def test_one_or_two_fees_find_the_optimum_of_a_row():
    x = np.sort(RNG(10).standard_normal((200, 1536)))
    assert compiled().solve(x, None, 16)[1] < 2.2 * len(x)  # measured: 1.7 a row


@pytest.mark.parametrize("search", ["compiled", "near"])
@pytest.mark.parametrize("k", [16, 64, 256])
def test_a_tensor_of_heavy_tails_is_within_one_in_ten_thousand(k, search):
    x = RNG(2).standard_t(3, (1, MANY + 1)).astype(np.float32)
    assert -1e-9 < cost(x, kmeans1d(x, k, search=search))[0] / tensor_optimum(k) - 1 < 1e-4  # measured: 7e-6 at 256


@cache
def tensor_optimum(k: int) -> float:
    return optimum(RNG(2).standard_t(3, MANY + 1).astype(np.float32), k)


@pytest.mark.parametrize("search", SEARCHES)
def test_weights_count_like_repeated_values(search):
    x = RNG(3).standard_normal((2, 200))
    times = RNG(4).integers(0, 4, (2, 200))
    for row, count in zip(x, times, strict=True):
        repeated = np.repeat(row, count)[None]
        for k in (2, 6, 40):
            levels = kmeans1d(row[None], k, count[None].astype(float), search=search)
            rel = 2e-2 if search == "near" else 1e-9
            assert cost(repeated, levels)[0] == pytest.approx(optimum(repeated[0], k), rel=rel)


@pytest.mark.parametrize("search", ["compiled", "near"])
def test_weights_of_a_tensor_count_like_repeated_values(search):
    x = RNG(2).standard_t(3, MANY + 1).astype(np.float32)
    times = RNG(4).integers(0, 3, MANY + 1)
    repeated = np.repeat(x, times)
    levels = kmeans1d(x[None], 16, times[None].astype(float), search=search)
    assert cost(repeated[None], levels)[0] == pytest.approx(optimum(repeated, 16), rel=1e-4)


def test_bins_are_filled_alike_with_and_without_numba():
    x, w = RNG(6).standard_t(3, 40000).astype(np.float32), RNG(7).random(40000)
    for weights in (None, w):
        for a, b in zip(gathered(x, weights, compiled()), gathered(x, weights, None), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)  # summed in another order


def test_weightless_values_have_no_say():
    x = np.array([[5.0, 1.0, 2.0, 9.0, 2.5]])
    w = np.array([[0.0, 1.0, 1.0, 0.0, 3.0]])
    assert kmeans1d(x, 2, w, search="compiled").tolist() == [[1.0, 9.5 / 4]]
    assert kmeans1d(x, 9, w, search="compiled").tolist() == [[1.0, 2.0] + [2.5] * 7]
    assert np.array_equal(kmeans1d(x, 2, w * 0, search="compiled"), kmeans1d(x, 2, search="compiled"))


@pytest.mark.parametrize("search", ["compiled", "layers", "near"])
def test_one_far_value_leaves_the_others_their_levels(search):
    x = np.append(RNG(8).standard_normal(575), 1e6)[None]
    levels = kmeans1d(x, 16, search=search)
    assert levels[0, -1] == 1e6
    rel = {"compiled": 1e-6, "layers": 1e-2, "near": 0.1}[search]  # less 1e12 the sums have few digits left
    assert cost(x, levels)[0] == pytest.approx(optimum(x[0, :-1], 15), rel=rel)


@pytest.mark.parametrize("search", SEARCHES)
def test_threads_change_nothing(search):
    x = RNG(5).standard_normal((900, 576) if search != "layers" else (80, 576)).astype(np.float32)
    assert np.array_equal(kmeans1d(x, 8, search=search), kmeans1d(x, 8, search=search, threads=2))


@pytest.mark.parametrize(("n", "k"), [(1, 4), (17, 4), (576, 16), (2000, 3)])
def test_layers_find_the_optimum_without_numba(n, k, without_numba):
    x = RNG(0).standard_t(4, (3, n)).astype(np.float32)
    best = np.array([optimum(r, k) if n > k else 0.0 for r in x])
    np.testing.assert_allclose(cost(x, kmeans1d(x, k)), best, rtol=1e-9, atol=1e-12)  # rounding of the prefix sums


@pytest.mark.parametrize("shape", [(64, 576), (24, 1536)])
def test_near_search_of_rows_without_numba(shape, without_numba):
    x = RNG(1).standard_normal(shape).astype(np.float32)
    best = np.array([optimum(r, 16) for r in x])
    levels = kmeans1d(x, 16)
    assert np.array_equal(levels, kmeans1d(x, 16, search="near"))
    excess = cost(x, levels) / best - 1
    assert excess.min() > -1e-9  # nothing is below an optimum
    assert excess.mean() < 1e-3  # measured: 0.6e-4 to 5e-4
    assert np.median(excess) < 1e-4
    assert excess.max() < 0.03  # measured: 0.016, one wrong point in a tail


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "quant.kmeans_exact", raising=False)
    monkeypatch.delattr(quant, "kmeans_exact", raising=False)
    compiled.cache_clear()
    yield
    compiled.cache_clear()


def test_the_compiled_search_is_refused_without_numba(without_numba):
    with pytest.raises(ValueError, match="numba"):
        kmeans1d(np.ones((1, 3)), 2, search="compiled")


def test_row_optimum_of_a_gaussian():
    w = torch.randn(400, 1024, generator=torch.Generator().manual_seed(0))
    error = (KMeans(4, 1).quantize(w).decode() - w).square().mean(1)
    sigma = float(error.std()) / 20  # standard error of the mean over 400 rows
    assert abs(float(error.mean()) - 0.008323) < 4 * sigma + 5e-6


@pytest.mark.parametrize(("bits", "limit"), [(2, 0.1174818478), (3, 0.0345477608), (4, 0.0095010080)])
def test_tensor_optimum_tends_to_lloyd_max(bits, limit):
    w = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(1))
    error = float((KMeans(bits).quantize(w).decode() - w).square().mean())
    assert error == pytest.approx(limit, rel=3e-3)  # 4 M samples: standard error 1e-3 relative


def test_group_scale_minimises_the_error_of_the_weights():
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    w *= torch.logspace(-2, 1, 64)[:, None]
    plain = (KMeans(4).quantize(w).decode() - w).square().sum(1) / w.square().sum(1)
    scaled = (KMeans(4, 0, 64, "float16").quantize(w).decode() - w).square().sum(1) / w.square().sum(1)
    assert scaled.mean() < 0.05 * plain.mean()


def test_levels_under_a_group_scale_weigh_each_group_by_its_scale_squared():
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    w[32:] = w[32:] ** 3 * 30  # the large groups have another shape than the small ones
    stored = KMeans(3, 0, 64, "float16").quantize(w)
    step = stored.scale.float().repeat_interleave(64, 1)
    error = float((stored.decode() - w).square().sum())
    for importance in (None, step, step**-2, step**4):
        other = optimal_levels(w / step, 8, 0, importance)[0].half().float()
        decoded = other[nearest(w / step, other).int()] * step
        assert error < 0.999 * float((decoded - w).square().sum())


def test_more_rows_a_table_cost_more_error_and_fewer_bytes():
    w = torch.randn(40, 576, generator=torch.Generator().manual_seed(3))
    stored = [KMeans(4, rows).quantize(w) for rows in (1, 16, 0)]
    error = [float((z.decode() - w).square().mean()) for z in stored]
    assert error == sorted(error)
    assert [z.parts()["levels"] for z in stored] == [40 * 32, 3 * 32, 32]


def weighted_optimum(x: np.ndarray, h: np.ndarray, k: int) -> float:
    """Least weighted error of a row over all ways to cut it, by dynamic programming over sums that are written out."""
    order = np.argsort(x)
    x, h = x[order].astype(float), h[order].astype(float)
    n = len(x)

    def cost(i: int, j: int) -> float:
        part, weight = x[i:j], h[i:j]
        return float((weight * (part - (weight * part).sum() / weight.sum()) ** 2).sum()) if weight.sum() else 0.0

    best = [0.0] + [np.inf] * n
    for _ in range(k):
        best = [min((best[i] + cost(i, j) for i in range(j + 1) if i < j or j == 0), default=0.0) for j in range(n + 1)]
        best[0] = 0.0
    return best[n]


@pytest.mark.parametrize("importance", ["fisher", "second_moment"])
def test_every_row_is_at_its_weighted_optimum(importance):
    w, known = gaussian(6, 40), calibration_of(6, 40)
    method = KMeans(2, 1, importance=importance)
    h = known.fisher if importance == "fisher" else known.second_moment.diagonal().expand(6, 40)
    levels = optimal_levels(w, 4, 1, method.weights(known, 6, 40)).double().numpy()
    for row in range(6):
        got = cost(w[row][None].numpy(), levels[row][None], h[row][None].numpy().astype(float))[0]
        assert got == pytest.approx(weighted_optimum(w[row].numpy(), h[row].numpy(), 4), rel=1e-5)  # levels in float32


@pytest.mark.parametrize("importance", ["fisher", "second_moment"])
@pytest.mark.parametrize(("rows", "group", "scale"), [(1, "tensor", None), (4, "tensor", None), (0, 32, "float16")])
def test_weighted_levels_are_never_worse_in_what_they_minimise(importance, rows, group, scale):
    w, known = gaussian(24, 256), calibration_of(24, 256)
    plain = KMeans(3, rows, group, scale)
    method = KMeans(3, rows, group, scale, importance)
    assert method.needs == {importance}
    h = method.weights(known, 24, 256)
    errors = [(h * (q.quantize(w, known).decode() - w) ** 2).sum(1) for q in (method, plain)]
    assert errors[0].sum() < errors[1].sum()
    if rows == 1:
        assert bool((errors[0] <= errors[1] * (1 + 2e-3)).all())  # levels are rounded to 11 bits
        assert errors[0].sum() < 0.95 * errors[1].sum()
    plain_errors = [(q.quantize(w, known).decode() - w).square().sum() for q in (method, plain)]
    assert plain_errors[0] > plain_errors[1]  # and so it is not the same


def test_importance_is_relative_and_rows_without_any_count_alike():
    w, known = gaussian(6, 64), calibration_of(6, 64)
    method = KMeans(3, 1, importance="fisher")
    tiny = dataclasses.replace(known, fisher=known.fisher * 1e-36)
    assert torch.equal(method.quantize(w, known).levels, method.quantize(w, tiny).levels)
    known.fisher[2] = 0
    levels = method.quantize(w, known).levels
    assert torch.equal(levels[2], KMeans(3, 1).quantize(w).levels[2])
    assert not torch.equal(levels[3], KMeans(3, 1).quantize(w).levels[3])


def test_squeezellm_is_one_table_a_row_weighted_by_fisher_information():
    for bits in (3, 4):
        assert METHODS[f"squeezellm-{bits}bit"] == KMeans(bits, 1, importance="fisher")
    w = gaussian(4, 4096)
    stored = METHODS["squeezellm-3bit"].quantize(w, Calibration(fisher=w.square()))
    assert stored.bits_per_weight == 3 + 16 * 8 / 4096  # 3.03 of rows as wide as LLaMA-7B's


NAMES = [m for m in METHODS if m.startswith(("kmeans", "squeezellm", "cluster", "quantile", "pot", "apot", "prune"))]


def degenerate() -> dict[str, torch.Tensor]:
    spike = torch.full((8, 64), 1e-3)
    spike[3, 5] = 1e4
    return {
        "zero": torch.zeros(8, 64),
        "constant": torch.full((8, 64), 0.25),
        "two values": torch.tensor([1.0, -2.0]).repeat(8, 32),
        "spike": spike,
        "denormal": torch.full((8, 64), 1e-41),
        "single": torch.tensor([[0.5]]),
        "odd": torch.randn(3, 65, generator=torch.Generator().manual_seed(4)),
        "huge": torch.full((2, 9), 2.0**99),
    }


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("case", degenerate())
def test_degenerate_weights(method, case):
    w = degenerate()[case]
    before = w.clone()
    stored, again = quantize(method, w), quantize(method, w)
    got = stored.dequantize()
    assert torch.equal(w, before)
    assert got.shape == w.shape
    assert got.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(stored.stored().values(), again.stored().values(), strict=True))
    if case in ("zero", "denormal"):
        assert not got.any()
    elif case == "two values" and method.startswith(("kmeans", "squeezellm", "cluster")):
        assert torch.equal(got, w)
    elif case in ("constant", "single", "huge") and not method.startswith("prune"):
        assert torch.allclose(got, w, rtol=1e-3)  # half a step of float16
