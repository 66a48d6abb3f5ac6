"""One-dimensional k-means: the k levels that minimise sum_i w_i (x_i - nearest level)**2, for many rows at once.

An optimal cluster is a run of consecutive sorted values, so a solution is k - 1 boundaries in the sorted row, and with
prefix sums N of the weights and S of w * x the cost of a run is a constant minus its gain (S_j - S_i)**2 / (N_j - N_i).
The total gain is maximised by dynamic programming over boundaries (Wang and Song 2011, Ckmeans.1d.dp, The R Journal
3(2)), in one of two ways:

exact   over every position, by divide and conquer on the monotone optimum, k n log n evaluations. Taken while the
        batch needs no more than `BUDGET` of them; a 576-value row with 16 clusters takes about 90 thousand.
near    over a few hundred cuts placed at equal steps of the integral of density**(1/3), the asymptotically optimal
        level density (Panter and Dite 1951), the outermost positions all included; then over a finer set of cuts near
        that solution; then over moves of every boundary by +-1, 3, 9, ... positions, all boundaries jointly, until
        none improves. Costs are those of the values themselves, never of a histogram.

Measured excess over the exact optimum of the near search is stated and held by tests/quant/test_kmeans.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUDGET", "cost", "kmeans1d"]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

BUDGET = 1 << 22  # evaluations up to which a batch is solved exactly
CHUNK = 1 << 15  # values held at a time in the near search: what stays in the second-level cache
TINY = 1e-37  # makes the gain of an empty run 0 instead of 0 / 0
WINDOW = (16, 32)  # fine cuts on either side of a coarse boundary: a row of many, a tensor or a large table


def kmeans1d(
    values: Floats, k: int, weights: Floats | None = None, exact: bool | None = None, threads: int = 1
) -> Floats:
    """Levels [rows, k], ascending, of each row of `values` [rows, n]; `weights` [rows, n] >= 0 default to one.

    A row with fewer than k distinct values repeats levels. `exact` forces one of the two searches; None lets the
    size of the batch decide. The result does not depend on `threads`. Raises ValueError for k < 1, for no values, or
    for weights of another shape.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"values must be a non-empty [rows, n], got shape {list(values.shape)}")
    if weights is not None and weights.shape != values.shape:
        raise ValueError(f"weights must have the shape {list(values.shape)} of the values, got {list(weights.shape)}")
    rows, n = values.shape
    if exact is None:
        exact = rows * k * n * np.log2(2 * n) <= BUDGET
    step = max(1, CHUNK // n)
    parts = [slice(r, r + step) for r in range(0, rows, step)]

    def solve(part: slice) -> Floats:
        return _solve(values[part], k, None if weights is None else weights[part], exact)

    if threads == 1 or len(parts) == 1:
        return np.concatenate([solve(part) for part in parts])
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(solve, parts)))


def cost(values: Floats, levels: Floats, weights: Floats | None = None) -> Floats:
    """Sum over each row of w * (x - nearest level)**2, [rows]."""
    out = np.empty(len(values))
    for r, (x, c) in enumerate(zip(values.astype(np.float64), levels, strict=True)):
        error = (x - c[np.searchsorted((c[1:] + c[:-1]) / 2, x)]) ** 2
        out[r] = error.sum() if weights is None else (error * weights[r]).sum()
    return out


def _solve(values: Floats, k: int, weights: Floats | None, exact: bool) -> Floats:
    """`kmeans1d` of one chunk. Inside, positions come first and rows last ([n, rows]): rows are the vector lanes."""
    if weights is None:
        x = np.sort(values, axis=1).T.astype(np.float64, order="C")
        w = None
    else:
        order = np.argsort(values, axis=1, kind="stable")
        x = np.take_along_axis(values, order, 1).T.astype(np.float64, order="C")
        w = np.take_along_axis(weights, order, 1).T.astype(np.float64, order="C")
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
        np.cumsum(w, 0, out=N[1:])
        np.cumsum(w * x, 0, out=S[1:])
    if k == 1 or n == 1:
        b = np.full((k - 1, rows), n)
    elif exact:
        b = np.stack([_exact(N[:, r], S[:, r], k) for r in range(rows)], 1)
    else:
        b = _near(x, N, S, k)
    levels: Floats = (_means(b, x, N, S) * size + middle).T
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


def _near(x: Floats, N: Floats, S: Floats, k: int) -> Ints:
    """Boundaries [k-1, rows] that no joint move improves; see the module's text."""
    n, rows = x.shape
    count = min(n, max(48 if rows > 1 else 256, 4 * k))
    place = _density(x, N, count)
    Nf, Sf = N / np.maximum(N[-1], TINY), S / np.maximum(np.abs(S).max(0), TINY)
    many = rows > 1 and k <= 16
    if many:  # then single precision, at half the time, is enough until the last step
        Nf, Sf = Nf.astype(np.float32), Sf.astype(np.float32)
    b = _over_cuts(_cuts(*place, n, count, min(max(7, k // 3), count // 4)), Nf, Sf, k)
    if count < n:
        fine = _cuts(*place, n, min(n, 4 * count), min(max(24, k), count // 4))
        nearest = np.stack([np.searchsorted(fine[:, r], b[:, r]) for r in range(rows)], 1)
        around = np.arange(-WINDOW[not many], WINDOW[not many] + 1)
        window = np.clip(nearest[:, None] + around[:, None], 0, len(fine) - 1)
        b, _ = _choose(np.take_along_axis(fine, window.reshape(-1, rows), 0).reshape(window.shape), Nf, Sf)
    reach = 3 ** np.arange(1 + int(np.log(max(1, n / count)) / np.log(3)))
    return _polish(b, N, S, np.concatenate([-reach[::-1], np.zeros(1, np.int64), reach]))


def _density(x: Floats, N: Floats, count: int) -> tuple[Ints, Floats]:
    """Positions [p] in the sorted rows and the integral of density**(1/3) up to each, 0 .. 1, [p, rows].

    Of the sorted values, gap**(2/3) * weight**(1/3) is density**(1/3) times the gap. No gap counts for more than two
    of `count` steps, so that an outlier far away does not draw all cuts to itself.
    """
    n = len(x)
    at = np.arange(0, n, max(1, n >> 16))  # a sample of the sorted values is enough
    step = np.diff(x[at], axis=0)
    step *= step
    step *= np.diff(N[at], axis=0)
    step = np.cbrt(step.astype(np.float32))
    for _ in range(3):
        np.minimum(step, step.sum(0) * np.float32(2 / count), out=step)
    reached = np.cumsum(step, 0, dtype=np.float64)
    return at[:-1] + 1, reached / np.maximum(reached[-1], TINY)


def _cuts(at: Ints, reached: Floats, n: int, count: int, tail: int) -> Ints:
    """`count` + 1 ascending positions [., rows]: the outer `tail` of either end, equal steps of `reached` between."""
    rows = reached.shape[1]
    if count == n:
        return np.repeat(np.arange(n + 1)[:, None], rows, 1)
    inner = count - 2 * tail
    out = np.empty((count + 1, rows), np.int64)
    out[: tail + 1] = np.arange(tail + 1)[:, None]
    out[count - tail :] = np.arange(n - tail, n + 1)[:, None]
    share = np.arange(1, inner) / inner
    for r in range(rows):
        out[tail + 1 : count - tail, r] = at[np.searchsorted(reached[:, r], share)]
    out.sort(axis=0)
    return out


def _gain(N: Floats, S: Floats, Nu: Floats, Su: Floats) -> Floats:
    """Gain of the runs from (Nu, Su) to (N, S), broadcast; -inf where the run would be backwards."""
    mass = N - Nu
    gain = S - Su
    gain *= gain
    backwards = mass < 0
    mass += mass.dtype.type(TINY)
    gain /= mass
    np.copyto(gain, -np.inf, where=backwards)
    return gain


def _over_cuts(cuts: Ints, N: Floats, S: Floats, k: int) -> Ints:
    """The best boundaries [k-1, rows] out of `cuts` [E, rows]."""
    E, rows = cuts.shape
    Nc, Sc = np.take_along_axis(N, cuts, 0), np.take_along_axis(S, cuts, 0)
    block = max(1, (1 << 14) // (E * rows))
    runs = [(u, _gain(Nc[u:], Sc[u:], Nc[u : u + block, None], Sc[u : u + block, None])) for u in range(0, E, block)]
    best = [runs[0][1][0]]
    for _ in range(k - 2):
        before, after = best[-1], best[-1].copy()
        for u, gain in runs:
            ahead = gain + before[u : u + block, None]
            np.maximum(after[u:], ahead.max(0) if block > 1 else ahead[0], out=after[u:])
        best.append(after)
    b = np.empty((k - 1, rows), np.int64)
    at, lane = np.full(rows, E - 1), np.arange(rows)
    for j in range(k - 2, -1, -1):
        at = (best[j] + _gain(Nc[at, lane], Sc[at, lane], Nc, Sc)).argmax(0)
        b[j] = cuts[at, lane]
    return b


def _choose(candidates: Ints, N: Floats, S: Floats) -> tuple[Ints, Floats]:
    """The best boundaries [k-1, rows], boundary j out of `candidates[j]` [W, rows], and their total gain [rows]."""
    count, width, rows = candidates.shape
    flat = candidates.reshape(-1, rows)
    Nc = np.take_along_axis(N, flat, 0).reshape(count, width, rows)
    Sc = np.take_along_axis(S, flat, 0).reshape(count, width, rows)
    best = [_gain(Nc[0], Sc[0], N[0], S[0])]
    for j in range(1, count):
        ahead = _gain(Nc[j], Sc[j], Nc[j - 1][:, None], Sc[j - 1][:, None])
        ahead += best[-1][:, None]
        best.append(ahead.max(0))
    total = best[-1] + _gain(N[-1], S[-1], Nc[-1], Sc[-1])
    lane, at = np.arange(rows), total.argmax(0)
    gain = total[at, lane]
    b = np.empty((count, rows), np.int64)
    b[-1] = candidates[-1, at, lane]
    for j in range(count - 1, 0, -1):
        at = (best[j - 1] + _gain(Nc[j, at, lane], Sc[j, at, lane], Nc[j - 1], Sc[j - 1])).argmax(0)
        b[j - 1] = candidates[j - 1, at, lane]
    return b, gain


def _polish(b: Ints, N: Floats, S: Floats, moves: Ints) -> Ints:
    """Joint moves of every boundary by one of `moves` until no row gains by it; at most 100 passes."""
    n = len(N) - 1
    b = b.copy()
    gain, active = np.full(b.shape[1], -np.inf), np.arange(b.shape[1])
    for _ in range(100):
        moved, reached = _choose(np.clip(b[:, None, active] + moves[:, None], 0, n), N, S)
        better = reached > gain[active] * (1 + 1e-12)
        better &= (moved != b[:, active]).any(0)
        rows = active[better]
        b[:, rows], gain[rows] = moved[:, better], reached[better]
        if not len(rows):
            break
        N, S, active = N[:, better], S[:, better], rows
    return b
