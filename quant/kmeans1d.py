"""One-dimensional k-means: the k levels that minimise sum_i w_i (x_i - nearest level)**2, for many rows at once.

An optimal cluster is a run of consecutive sorted values, so a solution is k - 1 boundaries in the sorted row, and with
prefix sums N of the weights and S of w * x the cost of a run is a constant minus its gain (S_j - S_i)**2 / (N_j - N_i).
The total gain is maximised by one of three searches:

compiled  exact, a few sweeps over a row whatever k is, see `quant.kmeans_exact`. It needs numba; without it:
layers    exact, by dynamic programming over every position (Wang and Song 2011, Ckmeans.1d.dp, The R Journal 3(2)),
          divide and conquer on the monotone optimum, k n log n evaluations. Taken while the batch needs no more than
          `BUDGET` of them; a 576-value row with 16 clusters takes about 90 thousand.
near      over some of the positions, see `quant.kmeans_near`: worst rows cost some percent more than their optimum.

Of more than `MANY` values in a row the middle is first gathered in bins (`quant.kmeans_bins`), and boundaries lie
between bins. Bounds of the excess over the exact optimum are held by tests/quant/test_kmeans.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.kmeans_bins import gathered
from quant.kmeans_near import TINY, near

__all__ = ["BUDGET", "SEARCHES", "compiled", "cost", "kmeans1d"]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

SEARCHES = ("compiled", "layers", "near")
BUDGET = 1 << 22  # evaluations up to which a batch is solved exactly without numba
CHUNK = 1 << 18  # values sorted at a time, and
LANES = 64  # so many rows at most without numba: what stays in the second-level cache
MANY = 1 << 17  # values in a row that are gathered in bins


@lru_cache(maxsize=1)
def compiled() -> ModuleType | None:
    """`quant.kmeans_exact`, None where numba cannot be imported; the import takes half a second, so not before use."""
    try:
        from quant import kmeans_exact
    except ImportError:
        return None
    return kmeans_exact


def kmeans1d(
    values: Floats, k: int, weights: Floats | None = None, search: str | None = None, threads: int = 1
) -> Floats:
    """Levels [rows, k], ascending, of each row of `values` [rows, n]; `weights` [rows, n] >= 0 default to one.

    A row with fewer than k distinct values repeats levels. `search` forces one of `SEARCHES`; None takes the compiled
    one, or without numba lets the size of the batch decide. The result does not depend on `threads`. Raises
    ValueError for k < 1, for no values, for weights of another shape, or for a search that is not there.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"values must be a non-empty [rows, n], got shape {list(values.shape)}")
    if weights is not None and weights.shape != values.shape:
        raise ValueError(f"weights must have the shape {list(values.shape)} of the values, got {list(weights.shape)}")
    rows, n = values.shape
    search = _chosen(search, rows * k * n * np.log2(2 * n))
    step = max(1, CHUNK // n)
    if search != "compiled":
        step = min(step, LANES)
    parts = [slice(r, r + step) for r in range(0, rows, step)]

    def solve(part: slice) -> Floats:
        x, w = values[part], None if weights is None else weights[part]
        if n > MANY and search != "layers":
            x, w = gathered(x[0], None if w is None else w[0], compiled() if search == "compiled" else None)
        elif w is None:
            x = np.sort(x, axis=1).astype(np.float64)
        else:
            order = np.argsort(x, axis=1, kind="stable")
            x, w = (np.take_along_axis(t, order, 1).astype(np.float64) for t in (x, w))
        return _solved(x, w, k, search)

    if threads == 1 or len(parts) == 1:
        return np.concatenate([solve(part) for part in parts])
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(solve, parts)))


def _chosen(search: str | None, evaluations: float) -> str:
    """The search to take, of a batch that needs so many evaluations in layers."""
    if search is None:
        return "compiled" if compiled() else "layers" if evaluations <= BUDGET else "near"
    if search not in SEARCHES:
        raise ValueError(f"search must be one of {', '.join(SEARCHES)}, got {search!r}")
    if search == "compiled" and not compiled():
        raise ValueError("search 'compiled' needs numba, which cannot be imported; install numba or leave search out")
    return search


def cost(values: Floats, levels: Floats, weights: Floats | None = None) -> Floats:
    """Sum over each row of w * (x - nearest level)**2, [rows]."""
    out = np.empty(len(values))
    for r, (x, c) in enumerate(zip(values.astype(np.float64), levels, strict=True)):
        error = (x - c[np.searchsorted((c[1:] + c[:-1]) / 2, x)]) ** 2
        out[r] = error.sum() if weights is None else (error * weights[r]).sum()
    return out


def _solved(x: Floats, w: Floats | None, k: int, search: str) -> Floats:
    """Levels [rows, k] of rows `x` [rows, n] sorted, with weights `w`, both float64."""
    if search == "compiled" and (module := compiled()):
        levels: Floats = module.solve(x, w, k)[0]
        return levels
    x = x.T.copy()  # rows last: they are the vector lanes
    n, rows = x.shape
    middle = x.mean(0)
    x -= middle
    size = np.maximum(-x[0], x[-1])
    size[size == 0] = 1.0
    x /= size
    N, S = np.zeros((n + 1, rows)), np.zeros((n + 1, rows))
    if w is None:
        N += np.arange(n + 1.0)[:, None]
        np.cumsum(x, 0, out=S[1:])
    else:
        np.cumsum(w.T, 0, out=N[1:])
        np.cumsum(w.T * x, 0, out=S[1:])
    if k == 1 or n == 1:
        b = np.full((k - 1, rows), n)
    elif search == "layers":
        b = np.stack([_exact(N[:, r], S[:, r], k) for r in range(rows)], 1)
    else:
        b = near(x, N, S, k)
    levels = (_means(b, x, N, S) * size + middle).T
    return levels


def _means(b: Ints, x: Floats, N: Floats, S: Floats) -> Floats:
    """Means [k, rows] of the runs between boundaries [k-1, rows]; an empty run repeats its neighbour's mean."""
    n, rows = x.shape
    edge = np.concatenate([np.zeros((1, rows), np.int64), b, np.full((1, rows), n)])
    mass = np.diff(np.take_along_axis(N, edge, 0), axis=0)
    total = np.diff(np.take_along_axis(S, edge, 0), axis=0)
    start = np.take_along_axis(x, np.minimum(edge[:-1], n - 1), 0)
    stop = np.take_along_axis(x, np.maximum(edge[1:], 1) - 1, 0)
    mean = np.where(mass > 0, total / np.where(mass > 0, mass, 1.0), start)
    inside = np.clip(mean, np.minimum(start, stop), np.maximum(start, stop))  # rounding of the prefix sums
    return np.sort(inside, axis=0)


def _exact(N: Floats, S: Floats, k: int) -> Ints:
    """Optimal boundaries [k-1] of one row: for each number of runs, the best last boundary of every prefix."""
    n = len(N) - 1
    best = S**2 / (N + TINY)
    back: list[Ints] = []
    for _ in range(k - 1):
        best, last = _layer(N, S, best)
        back.append(last)
    b, at = np.empty(k - 1, np.int64), n
    for j in range(k - 2, -1, -1):
        at = back[j][at]
        b[j] = at
    return b


def _layer(N: Floats, S: Floats, before: Floats) -> tuple[Floats, Ints]:
    """max over i <= j of before[i] + gain(i, j), and its i, for every j [n+1]: all nodes of a tree level at once.

    The best i never falls as j grows, so the middle of a solved pair of columns searches between their answers.
    """
    n = len(N) - 1
    best, last = np.empty(n + 1), np.empty(n + 1, np.int64)
    first, end = np.array([0]), np.array([n])  # columns of each node, and between which answers it searches
    low, high = np.array([0]), np.array([n])
    while len(first):
        column = (first + end) // 2
        length = np.minimum(high, column) - low + 1
        stop = np.cumsum(length)
        begin = stop - length
        i = np.arange(stop[-1]) + np.repeat(low - begin, length)
        of = np.repeat(column, length)
        gain = S[of] - S[i]
        gain *= gain
        gain /= N[of] - N[i] + TINY
        gain += before[i]
        top = np.maximum.reduceat(gain, begin)
        hit = np.flatnonzero(gain == np.repeat(top, length))
        at = i[hit[np.searchsorted(hit, begin)]]
        best[column], last[column] = top, at
        left, right = column > first, column < end
        low, high = np.concatenate([low[left], at[right]]), np.concatenate([at[left], high[right]])
        first, end = (
            np.concatenate([first[left], column[right] + 1]),
            np.concatenate([column[left] - 1, end[right]]),
        )
    return best, last
