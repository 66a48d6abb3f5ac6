"""Sums over the second moment of rows of codes, and coordinate descent over their columns, compiled by numba.

A matrix product would form H P for every level of every row. Here each row of H is added once to what is kept of its
level, and only as far as the diagonal: 2**(bits + 1) times fewer operations, tile after tile of H that fits the
second-level cache. The descent keeps the gradient of a row for as long as it lasts: only a code that moves costs more
than its look at the levels, and few do.

Importing this module needs numba; its machine code is kept beside the source or in the user's cache, until this file
changes: so no constant comes from another file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["settle", "totals"]

Floats = NDArray[np.floating[Any]]
Codes = NDArray[np.uint8]

DEEP, WIDE = 1024, 64  # rows and columns of a tile of H
TOGETHER = 32  # rows of the weight that go through the columns together: a row of H serves them all


@njit(cache=True, nogil=True, error_model="numpy")
def totals(h: Floats, codes: Codes, count: int) -> Floats:
    """P^T H P [n, count, count] float64 of every row of `codes` [n, k], P its one-hot [k, count]; `h` [k, k]."""
    n, k = codes.shape
    out = np.zeros((n, count, count))
    kept = np.empty((count, WIDE), np.float32)
    for left in range(0, k, WIDE):
        wide = min(WIDE, k - left)
        for top in range(0, left + wide, DEEP):
            deep = min(DEEP, left + wide - top)
            tile = h[top : top + deep, left : left + wide].copy()
            tile[: max(0, left - top)] *= 2  # for what lies on the other side of the diagonal
            for row in range(n):
                kept[:] = 0
                for j in range(deep):
                    level = codes[row, top + j]
                    for i in range(wide):
                        kept[level, i] += tile[j, i]
                for i in range(wide):
                    level = codes[row, left + i]
                    for a in range(count):
                        out[row, a, level] += kept[a, i]
    for row in range(n):
        out[row] = (out[row] + out[row].T) / 2
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def settle(levels: Floats, cuts: Floats, codes: Codes, gradient: Floats, h: Floats, passes: int) -> None:
    """Moves `codes` [n, k] column after column to the best level of each, `passes` times, in place.

    `levels` [n, L] ascend, `cuts` [n, L - 1] lie between. `gradient` [n, k] is the product of what is decoded less the
    weight with `h` [k, k]; it follows the codes.
    """
    n, k = codes.shape
    for first in range(0, n, TOGETHER):
        for _ in range(passes):
            for i in range(k):
                curvature = h[i, i]
                if curvature <= 0:
                    continue
                for r in range(first, min(first + TOGETHER, n)):
                    now = levels[r, codes[r, i]]
                    target = now - gradient[r, i] / curvature
                    code = 0
                    for c in range(cuts.shape[1]):
                        code += target > cuts[r, c]
                    if code != codes[r, i]:
                        step = levels[r, code] - now
                        codes[r, i] = code
                        for j in range(k):
                            gradient[r, j] += h[i, j] * step
