"""Many values in equal bins for one-dimensional k-means: each bin becomes one point, its mean, with its weight.

The spread within a bin is a constant of the cost, so the cost of clusters made of whole bins is exact, and the optimum
over them exceeds the true one by about (bin / cluster)**2. The outer values, one in about a thousand at either end,
stay points of their own, so that a heavy tail does not stretch the bins.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "gathered"]

Floats = NDArray[np.floating[Any]]

BINS = 1 << 16


def gathered(values: Floats, weights: Floats | None, compiled: ModuleType | None) -> tuple[Floats, Floats]:
    """Ascending points and their weights, each [1, p] float64, of `values` [n] with `weights`, or one each.

    `compiled` is `quant.kmeans_exact`, or None to count with numpy.
    """
    sample = np.sort(values[:: max(1, len(values) >> 14)])
    outer = max(1, len(sample) >> 10)
    low, high = float(sample[outer]), float(sample[-1 - outer])
    middle = low / 2 + high / 2
    scale = min((BINS - 1) / max(high - low, np.finfo(np.float64).tiny), 1e300)
    outside = (values < low) | (values > high)
    place = compiled.fill if compiled else _fill
    mass, total = place(values, weights, low, high, scale, middle, BINS)
    rest = values[outside].astype(np.float64)
    order = np.argsort(rest, kind="stable")
    rest = rest[order]
    own = np.ones(len(rest)) if weights is None else weights[outside][order].astype(np.float64)
    first = int(np.searchsorted(rest, low))
    used = mass > 0
    x = np.concatenate([rest[:first], total[used] / mass[used] + middle, rest[first:]])
    w = np.concatenate([own[:first], mass[used], own[first:]])
    return np.maximum.accumulate(x)[None], w[None]  # means of neighbours may cross in the last digit


def _fill(
    values: Floats, weights: Floats | None, low: float, high: float, scale: float, middle: float, bins: int
) -> tuple[Floats, Floats]:
    """Weight and sum of w * (x - `middle`) of each bin [bins], over the values from `low` to `high`."""
    inside = (values >= low) & (values <= high)
    core = values[inside].astype(np.float64)
    w = np.ones(len(core)) if weights is None else weights[inside].astype(np.float64)
    at = np.minimum((core - low) * scale, bins - 1).astype(np.int64)
    mass, total = np.bincount(at, w, bins), np.bincount(at, w * (core - middle), bins)
    return mass.astype(np.float64), total.astype(np.float64)
