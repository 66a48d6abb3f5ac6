"""The one-dimensional k-means against an independent exact solver, and the optimum's known values."""

import kmeans1d as oracle
import numpy as np
import pytest
import torch

from quant.core import METHODS
from quant.kmeans1d import cost, kmeans1d
from quant.methods.kmeans import KMeans, optimal_levels
from quant.nearest import nearest

RNG = np.random.default_rng


def optimum(x: np.ndarray, k: int) -> float:
    found = oracle.cluster(x.astype(float), k)
    return float(((x - np.array(found.centroids)[found.clusters]) ** 2).sum())


@pytest.mark.parametrize(("n", "k"), [(1, 4), (17, 4), (576, 16), (2000, 3)])
def test_exact_search_finds_the_optimum(n, k):
    x = RNG(0).standard_t(4, (3, n)).astype(np.float32)
    best = np.array([optimum(r, k) if n > k else 0.0 for r in x])
    got = cost(x, kmeans1d(x, k, exact=True))
    np.testing.assert_allclose(got, best, rtol=1e-9, atol=1e-12)  # float64 rounding of the prefix sums


@pytest.mark.parametrize("shape", [(64, 576), (24, 1536)])
def test_near_search_of_rows(shape):
    x = RNG(1).standard_normal(shape).astype(np.float32)
    best = np.array([optimum(r, 16) for r in x])
    excess = cost(x, kmeans1d(x, 16, exact=False)) / best - 1
    assert excess.min() > -1e-9  # nothing is below an optimum
    assert excess.mean() < 1e-3  # measured: 0.6e-4 to 5e-4
    assert np.median(excess) < 1e-4
    assert excess.max() < 0.03  # measured: 0.016, one wrong point in a tail


@pytest.mark.parametrize("k", [4, 16, 64])
def test_near_search_of_a_tensor_is_within_one_in_ten_thousand(k):
    x = RNG(2).standard_t(5, (1, 1 << 16)).astype(np.float32)
    assert -1e-9 < cost(x, kmeans1d(x, k, exact=False))[0] / optimum(x[0], k) - 1 < 1e-4


@pytest.mark.parametrize("exact", [True, False])
def test_weights_count_like_repeated_values(exact):
    x = RNG(3).standard_normal((2, 200))
    times = RNG(4).integers(0, 4, (2, 200))
    for row, count in zip(x, times, strict=True):
        repeated = np.repeat(row, count)[None]
        levels = kmeans1d(row[None], 6, count[None].astype(float), exact=exact)
        assert cost(repeated, levels)[0] == pytest.approx(optimum(repeated[0], 6), rel=1e-3 if not exact else 1e-9)


def test_threads_change_nothing():
    x = RNG(5).standard_normal((300, 576)).astype(np.float32)
    assert np.array_equal(kmeans1d(x, 8, exact=False), kmeans1d(x, 8, exact=False, threads=2))


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


NAMES = [m for m in METHODS if m.startswith(("kmeans", "cluster", "quantile", "pot", "apot", "prune"))]


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
    stored, again = METHODS[method].quantize(w), METHODS[method].quantize(w)
    got = stored.dequantize()
    assert torch.equal(w, before)
    assert got.shape == w.shape
    assert got.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(stored.stored().values(), again.stored().values(), strict=True))
    if case in ("zero", "denormal"):
        assert not got.any()
    elif case == "two values" and method.startswith(("kmeans", "cluster")):
        assert torch.equal(got, w)
    elif case in ("constant", "single", "huge") and not method.startswith("prune"):
        assert torch.allclose(got, w, rtol=1e-3)  # half a step of float16


def test_settings_are_checked():
    for bad in ({"bits": 9}, {"bits": 0}, {"rows": -1}, {"group": 64}, {"scale": "int3"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            KMeans(**bad)
    with pytest.raises(ValueError, match="k must"):
        kmeans1d(np.ones((1, 3)), 0)
    with pytest.raises(ValueError, match="non-empty"):
        kmeans1d(np.ones((0, 3)), 2)
    with pytest.raises(ValueError, match="shape"):
        kmeans1d(np.ones((1, 3)), 2, np.ones((1, 2)))
