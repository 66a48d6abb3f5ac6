"""How much accuracy is lost at most, when the row that says so was picked out of many.

b texts of n turned wrong and c turned right; the lost share is estimated by (b - c) / n. The lower bound of the change
d = (c - b) / n at level a is the least d that Tango's score does not reject (Tango 1998, Statistics in Medicine 17):

    z(d) = (c - b - n d) / sqrt(n (2 q - d (1 + d))) <= z(1 - a)
    q    = the share that turned right, at its most likely under the change d

The score needs no variance of the sample, which is zero where no text turned. Of m rows scanned, the one picked is held
to level a / m (Bonferroni), so that all m bounds hold together with probability 1 - a.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

from bench.reports.frames import Row, dig
from bench.reports.stats import Z95

__all__ = ["ONE_SIDED", "lowest_change", "paired_low"]

ONE_SIDED = 0.025  # the lower end of a 95 % interval
STEPS = 60  # of bisection


def paired_low(wrong: int, right: int, n: int, level: float) -> float:
    """The lower bound at `level` of the change of a share of which `wrong` of `n` items were lost, `right` gained."""
    limit = NormalDist().inv_cdf(1 - level)
    low, high = -1.0, (right - wrong) / n
    for _ in range(STEPS):
        middle = (low + high) / 2
        if score(wrong, right, n, middle) > limit:
            low = middle
        else:
            high = middle
    return high


def score(wrong: int, right: int, n: int, change: float) -> float:
    """Tango's z of the hypothesis that the change is `change` <= 0."""
    d = -change
    b = wrong * (1 + d) + right * (1 - d) - 2 * n * d
    q = (b + math.sqrt(b * b + 8 * n * right * d * (1 - d))) / (4 * n)
    spread = n * (2 * q + d * (1 - d))
    return math.inf if spread <= 0 else (right - wrong + n * d) / math.sqrt(spread)


def lowest_change(row: Row, rows: int) -> float | None:
    """Points of accuracy that `row`, one of `rows` scanned, may have lost at most: the least of its seeds."""
    level = ONE_SIDED / rows
    found = [_of_record(dig(r, "accuracy", "accuracy"), level) for r in row.records]
    known = [low for low in found if low is not None]
    return 100.0 * min(known) if len(known) == len(found) else None


def _of_record(stat: Any, level: float) -> float | None:
    """From what turned; without it, the interval widened as that of a normal variable."""
    wrong, right, n = (dig(stat, name) for name in ("turned_wrong", "turned_right", "n"))
    if all(isinstance(x, int) for x in (wrong, right, n)) and n:
        return paired_low(int(wrong), int(right), int(n), level)
    value, low = dig(stat, "delta"), dig(stat, "delta_low")
    if not isinstance(value, float) or not isinstance(low, float):
        return None
    wider = NormalDist().inv_cdf(1 - level) / Z95
    return float(value - wider * (value - low))
