"""Near-optimal boundaries of one-dimensional k-means, from prefix sums, for many rows side by side.

First a dynamic program over a few dozen cuts at equal steps of the integral of density**(1/3), the asymptotically
optimal level density (Panter and Dite 1951), the outermost positions all included. Then all boundaries move at once,
each by a few steps either way, the best combination again by dynamic programming; the steps begin at the spacing of the
cuts and shrink threefold to single positions. A large table (k > `LARGEST_PROGRAM`) begins at every fourth cut instead,
moving over cuts first. Costs are those of the values themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["TINY", "near"]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

TINY = 1e-37  # makes the gain of an empty run 0 instead of 0 / 0
LARGEST_PROGRAM = 64  # levels up to which the first program tries all pairs of cuts
CUTS = (48, 256)  # cuts of one row among many, and of a tensor
WINDOW = (16, 32)  # fine cuts that a boundary moves first, of one row among many, and of a tensor
MOVES = (3, 9)  # steps either way that a boundary then moves at once, likewise
PASSES = 40  # at most so many joint moves of one step size


def near(x: Floats, N: Floats, S: Floats, k: int) -> Ints:
    """Boundaries [k-1, rows] of sorted `x` [n, rows] with prefix sums `N` of weights and `S` of weighted values.

    `N` and `S` are [n+1, rows]; with more rows than one the search computes in single precision.
    """
    n, rows = x.shape
    count = min(n, max(CUTS[rows == 1], 4 * k))
    density = _density(x, N, count)
    fine = _cuts(*density, n, min(n, 4 * count), min(max(24, k), count // 4))
    N, S = N / np.maximum(N[-1], TINY), S / np.maximum(np.abs(S).max(0), TINY)
    if rows > 1:
        N, S = N.astype(np.float32), S.astype(np.float32)
    if k <= LARGEST_PROGRAM:
        b = _over_cuts(_cuts(*density, n, count, min(max(7, k // 3), count // 4)), N, S, k)
    else:
        coarse = _cuts(*density, n, count, min(max(7, k // 3), count // 4))
        at = np.minimum(_search(coarse, _cuts(*density, n, k, 0)[1:-1]), count)
        wide = np.arange(-WINDOW[1], WINDOW[1] + 1)
        b = _take(coarse, _moved(at, np.ones_like(at), _take(N, coarse), _take(S, coarse), wide, PASSES))
    at = np.minimum(_search(fine, b), len(fine) - 1)
    reach, passes = (WINDOW[rows == 1], PASSES if rows == 1 else 1) if k <= LARGEST_PROGRAM else (WINDOW[0], PASSES)
    at = _moved(at, np.ones_like(at), _take(N, fine), _take(S, fine), np.arange(-reach, reach + 1), passes)
    b = _take(fine, at)
    spacing = (_take(fine, np.minimum(at + 1, len(fine) - 1)) - _take(fine, np.maximum(at - 1, 0))) / 2
    moves = np.arange(-MOVES[rows == 1], MOVES[rows == 1] + 1)
    while spacing.max() > 1:
        spacing /= 3
        step = np.maximum(np.round(spacing), 1).astype(np.int64)
        b = _moved(b, step, N, S, moves, PASSES)
    return b


def _search(sorted_rows: NDArray[Any], values: NDArray[Any]) -> Ints:
    """Index of the first entry of `sorted_rows` [p, rows] not below each of `values` [., rows], row by row."""
    table, wanted = torch.from_numpy(sorted_rows.T.copy()), torch.from_numpy(values.T.copy())
    found: Ints = np.asarray(torch.searchsorted(table, wanted).numpy().T, np.int64)
    return found


def _take(t: NDArray[Any], at: Ints) -> NDArray[Any]:
    """`t` [n, rows] at positions `at` [..., rows] of each row."""
    rows = t.shape[1]
    taken: NDArray[Any] = t.reshape(-1).take(at * rows + np.arange(rows))
    return taken


def _density(x: Floats, N: Floats, count: int) -> tuple[Ints, Floats]:
    """Positions [p] in the sorted rows and the integral of density**(1/3) up to each, 0 .. 1, [p, rows].

    Of the sorted values, gap**(2/3) * weight**(1/3) is density**(1/3) times the gap. No gap counts for more than two
    of `count` steps, so that an outlier far away does not draw all cuts to itself.
    """
    n, rows = x.shape
    at = np.arange(0, n, max(1, n // (1 << 14 if rows == 1 else 512)))  # a sample of the sorted values is enough
    step = np.diff(x[at], axis=0).astype(np.float32)
    step *= step
    step *= np.diff(N[at], axis=0)
    step = np.cbrt(step)
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
    share = np.repeat(np.arange(1, inner)[:, None] / inner, rows, 1)
    out = np.empty((count + 1, rows), np.int64)
    out[: tail + 1] = np.arange(tail + 1)[:, None]
    out[count - tail :] = np.arange(n - tail, n + 1)[:, None]
    out[tail + 1 : count - tail] = at[np.minimum(_search(reached, share), len(at) - 1)]
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
    Nc, Sc = _take(N, cuts), _take(S, cuts)
    block = -(-E // 6)
    runs = [(u, _gain(Nc[u:], Sc[u:], Nc[u : u + block, None], Sc[u : u + block, None])) for u in range(0, E, block)]
    room = np.empty_like(runs[0][1])
    best = [runs[0][1][0]]
    for _ in range(k - 2):
        before, after = best[-1], best[-1].copy()
        for u, gain in runs:
            ahead = room.reshape(-1)[: gain.size].reshape(gain.shape)
            np.add(gain, before[u : u + block, None], out=ahead)
            np.maximum(after[u:], ahead.max(0), out=after[u:])
        best.append(after)
    b = np.empty((k - 1, rows), np.int64)
    at, lane = np.full(rows, E - 1), np.arange(rows)
    for j in range(k - 2, -1, -1):
        at = (best[j] + _gain(Nc[at, lane], Sc[at, lane], Nc, Sc)).argmax(0)
        b[j] = cuts[at, lane]
    return b


def _moved(b: Ints, step: Ints, N: Floats, S: Floats, moves: Ints, passes: int) -> Ints:
    """`b` [k-1, rows] after joint moves by `moves` times `step` [k-1, rows] until no row gains, or `passes`."""
    n, rows = len(N) - 1, N.shape[1]
    active, b = np.arange(rows), b.copy()
    gain = np.full(rows, -np.inf)
    least = 1 + 32 * np.finfo(N.dtype).eps  # below it, rounding
    for _ in range(passes):
        places = np.clip(b[:, None, active] + moves[:, None] * step[:, None, active], 0, n)
        flat = places * rows + active
        found, reached = _choose(
            places, N.reshape(-1).take(flat), S.reshape(-1).take(flat), N[-1, active], S[-1, active]
        )
        better = (reached > gain[active] * least) & (found != b[:, active]).any(0)
        active = active[better]
        b[:, active], gain[active] = found[:, better], reached[better]
        if not len(active):
            break
    return b


def _choose(places: Ints, Nc: Floats, Sc: Floats, Nn: Floats, Sn: Floats) -> tuple[Ints, Floats]:
    """The best boundaries [k-1, rows], boundary j out of `places[j]` [W, rows], and their total gain [rows].

    `Nc` and `Sc` are the prefix sums there, `Nn` and `Sn` [rows] the totals.
    """
    count, _, rows = places.shape
    best = _gain(Nc[0], Sc[0], Nn - Nn, Sn - Sn)
    if rows == 1:  # all runs in one go
        ahead = list(_gain(Nc[1:, None], Sc[1:, None], Nc[:-1, :, None], Sc[:-1, :, None]))
    else:  # run by run stays in the cache
        ahead = [_gain(Nc[j + 1], Sc[j + 1], Nc[j][:, None], Sc[j][:, None]) for j in range(count - 1)]
    for gain in ahead:
        gain += best[:, None]
        best = gain.max(0)
    best = best + _gain(Nn, Sn, Nc[-1], Sc[-1])
    lane, at = np.arange(rows), best.argmax(0)
    total = best[at, lane]
    b = np.empty((count, rows), np.int64)
    b[-1] = places[-1, at, lane]
    for j in range(count - 2, -1, -1):
        at = ahead[j][:, at, lane].argmax(0)
        b[j] = places[j, at, lane]
    return b, total
