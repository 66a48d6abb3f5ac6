"""Exact one-dimensional k-means of sorted rows, compiled by numba: every run of every row at a fee, and the fee sought.

With prefix sums N of the weights and S of w * x, the gain of the run (i, j] is (S_j - S_i)**2 / (N_j - N_i). The gain
f(m) of the best m runs is concave in m, because the cost of a run obeys the quadrangle inequality; so for some fee a
run the unconstrained optimum of gain minus fees has just k runs (Aggarwal, Schieber and Tokuyama 1994, Discrete Comput.
Geom. 12; Groenlund et al. 2017, arXiv 1701.07204). One optimum at a given fee is one sweep of n log n steps whatever k
is: each position holds the columns where it is the best predecessor, and these are intervals (Galil and Park 1992).
The fee that gave the previous row its k runs is the first try for the next. Where f is straight at k no fee gives k
runs alone, and two optima of the same fee, of fewer and of more runs, are spliced into one of k.

Importing this module needs numba; its machine code is kept beside the source or in the user's cache, until this file
changes: so no constant comes from another file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["fill", "solve"]

Floats = NDArray[np.floating[Any]]
Places = NDArray[np.int32]

FLOOR = 1e-20  # of the total weight, added to that of a run: weights lost in rounding of N gain nothing
TRIES = 100  # fees tried, from experience 1 to 3 a row, at most 12; then the nearest two optima are spliced
GAUSSIAN = 5.44  # fee of a Gaussian, times k**3 / (n variance): minus the derivative of 2.72 / k**2 (Panter, Dite)


@njit(cache=True, nogil=True, error_model="numpy")
def _gain(N: Floats | None, S: Floats, R: Floats, i: int, j: int) -> float:
    """Gain of the run (i, j]; without weights N is None and R [n+1] the reciprocals of counts, else R[0] the floor."""
    d = S[j] - S[i]
    if N is None:
        return float(d * d * R[j - i])
    return float(d * d / (N[j] - N[i] + R[0]))


@njit(cache=True, nogil=True, error_model="numpy")
def _sweep(
    N: Floats | None, S: Floats, R: Floats, fee: float, best: Floats, last: Places, held: Places, since: Places
) -> int:
    """Number of runs of the optimum of gain minus `fee` a run; `last` [n+1] is its predecessor of every position.

    `best` [n+1] is the optimum of every prefix. From column `since[q]` on, position `held[q]` is the best predecessor;
    a later position that is better at one column stays so at all after it.
    """
    n = len(S) - 1
    best[0] = 0.0
    head, tail = 0, 1
    held[0], since[0] = 0, 1
    for j in range(1, n + 1):
        while head + 1 < tail and since[head + 1] <= j:
            head += 1
        i = held[head]
        mine = best[i] + _gain(N, S, R, i, j) - fee
        best[j], last[j] = mine, i
        while j < n:
            rival = held[tail - 1]
            theirs = best[rival]
            low = max(since[tail - 1], j + 1)
            if mine + _gain(N, S, R, j, low) > theirs + _gain(N, S, R, rival, low):
                tail -= 1
                if tail > head:
                    continue
                held[tail], since[tail] = j, j + 1
                tail += 1
            elif mine + _gain(N, S, R, j, n) > theirs + _gain(N, S, R, rival, n):
                step = 4
                high = low + step
                while high < n and mine + _gain(N, S, R, j, high) <= theirs + _gain(N, S, R, rival, high):
                    low = high
                    step *= 2
                    high = low + step
                high = min(high, n)
                while high - low > 1:
                    column = (low + high) >> 1
                    if mine + _gain(N, S, R, j, column) > theirs + _gain(N, S, R, rival, column):
                        high = column
                    else:
                        low = column
                held[tail], since[tail] = j, high
                tail += 1
            break
    runs, j = 0, n
    while j > 0:
        j = last[j]
        runs += 1
    return runs


@njit(cache=True, nogil=True, error_model="numpy")
def _trace(N: Floats | None, S: Floats, R: Floats, last: Places, runs: int, path: Places) -> float:
    """Fills `path` [runs+1] with the positions of an optimum, 0 and n included; its gain."""
    j, gain = len(S) - 1, 0.0
    for r in range(runs, 0, -1):
        path[r] = j
        gain += _gain(N, S, R, last[j], j)
        j = last[j]
    path[0] = 0
    return gain


@njit(cache=True, nogil=True, error_model="numpy")
def _splice(few: Places, fewer: int, many: Places, k: int) -> None:
    """Makes of `many` [> k+1] and `few` [fewer+1] one path of k runs, in `few`: no dearer if both are optima.

    Some run of `few` contains the run of `many` that comes k - `fewer` places later; there the one passes to the other.
    """
    more = k - fewer
    i = 0
    while many[i + more + 1] > few[i + 1]:
        i += 1
    for r in range(fewer, i, -1):
        few[r + more] = few[r]
    few[: i + more + 1] = many[: i + more + 1]


@njit(cache=True, nogil=True, error_model="numpy")
def _cut(
    N: Floats | None,
    S: Floats,
    R: Floats,
    k: int,
    fee: float,
    best: Floats,
    last: Places,
    held: Places,
    since: Places,
    few: Places,
    many: Places,
) -> tuple[float, int]:
    """Fills `few` [k+1] with the optimal positions of 1 < k < n runs, 0 and n included; the fee found, and the tries.

    `few` and `many` hold the optima so far of the most runs below and the fewest above k.
    """
    n = len(S) - 1
    few[0], few[1] = 0, n
    fewer, gain_few, fee_few = 1, 0.0, np.inf
    for i in range(n + 1):
        many[i] = i
    more, gain_many, fee_many = n, 0.0, 0.0
    crossing = False
    for tried in range(1, TRIES + 1):
        runs = _sweep(N, S, R, fee, best, last, held, since)
        if runs == k:
            _trace(N, S, R, last, k, few)
            return fee, tried
        if crossing and not fewer < runs < more:
            break
        if runs < k:
            fewer, fee_few, gain_few = runs, fee, _trace(N, S, R, last, runs, few)
        else:
            more, fee_many, gain_many = runs, fee, _trace(N, S, R, last, runs, many)
        crossing = False
        if fee_many == 0.0 or fee_few == np.inf:
            fee *= (runs / k) ** 3  # runs grow about as fee**(-1/3)
        elif tried % 3 == 0:  # where the two optima are equal: if nothing is better there, f is straight between them
            crossing = True
            fee = (gain_many - gain_few) / (more - fewer)
        else:
            share = np.log(more / k) / np.log(more / fewer)
            fee = fee_many * (fee_few / fee_many) ** min(max(share, 0.1), 0.9)
        if not fee_many < fee < fee_few:
            break
    _splice(few, fewer, many, k)
    return fee, TRIES


@njit(cache=True, nogil=True, error_model="numpy")
def solve(values: Floats, weights: Floats | None, k: int) -> tuple[Floats, int]:
    """Levels [rows, k], ascending, of `values` [rows, n] sorted in each row, and the number of sweeps made.

    `weights` [rows, n] belong to the sorted values; those of no weight are passed over, unless all are.
    """
    rows, n = values.shape
    levels = np.empty((rows, k))
    x, S, best = np.empty(n), np.zeros(n + 1), np.empty(n + 1)
    last, held, since = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32), np.empty(n + 1, np.int32)
    few, many = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32)
    mass = np.zeros(n + 1)
    R = np.zeros(n + 1)
    R[1:] = 1 / np.arange(1, n + 1)
    rate, sweeps = GAUSSIAN, 0
    for row in range(rows):
        middle = np.float64(values[row, n // 2])
        size = max(middle - values[row, 0], values[row, n - 1] - middle)
        if size == 0:
            size = 1.0
        count, distinct, square = 0, 0, 0.0
        weightless = weights is not None and not weights[row].max() > 0
        for i in range(n):
            w = 1.0
            if weights is not None and not weightless:
                w = weights[row, i]
                if w <= 0:
                    continue
            at = (values[row, i] - middle) / size
            if count == 0 or at != x[count - 1]:
                if distinct < k:
                    levels[row, distinct] = values[row, i]
                distinct += 1
            x[count] = at
            square += w * at * at
            mass[count + 1] = mass[count] + w
            S[count + 1] = S[count] + w * at
            count += 1
        if distinct <= k:
            levels[row, distinct:] = levels[row, distinct - 1]
            continue
        few[0], few[1] = 0, count
        if k > 1:
            spread = (square - S[count] ** 2 / mass[count]) / k**3
            fee = rate * spread
            room = S[: count + 1]
            if weights is None:
                fee, tries = _cut(None, room, R, k, fee, best, last, held, since, few, many)
            else:
                floor = np.full(1, FLOOR * mass[count])
                fee, tries = _cut(mass[: count + 1], room, floor, k, fee, best, last, held, since, few, many)
            sweeps += tries
            if 0.1 * GAUSSIAN < fee / spread < 10 * GAUSSIAN:
                rate += 0.25 * (fee / spread - rate)
        for c in range(k):
            start, stop = few[c], few[c + 1]
            mean = (S[stop] - S[start]) / (mass[stop] - mass[start])
            levels[row, c] = min(max(mean, x[start]), x[stop - 1]) * size + middle
    return levels, sweeps


@njit(cache=True, nogil=True, error_model="numpy")
def fill(
    values: Floats, weights: Floats | None, low: float, high: float, scale: float, middle: float, bins: int
) -> tuple[Floats, Floats]:
    """Weight and sum of w * (x - `middle`) of each bin [bins], over the values from `low` to `high`."""
    mass, total = np.zeros(bins), np.zeros(bins)
    for i in range(len(values)):
        v = np.float64(values[i])
        if low <= v <= high:
            w = 1.0 if weights is None else np.float64(weights[i])
            at = min(int((v - low) * scale), bins - 1)
            mass[at] += w
            total[at] += w * (v - middle)
    return mass, total
