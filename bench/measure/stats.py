"""A figure with its interval: {"value", "low", "high", "n", "interval"}.

What "interval" says:
    order95      median, n >= 6: interpolated order statistics (Hettmansperger & Sheather 1986, Statistics & Probability
                 Letters 4:75). The percentile bootstrap of a median covers only 87 % at n = 7; this covers 94-96 %.
    bootstrap95  mean, n >= 6: percentile bootstrap, its level widened from the normal to the t quantile
                 (Hesterberg 2015, The American Statistician 69:371, "expanded percentile")
    range        n = 2..5: smallest and largest sample. They hold the median with probability 1 - 2**(1 - n) only.
    none         one sample or none: low and high are null
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEWEST", "paired_ratio", "paired_ratios", "stat"]

FEWEST = 6  # at n = 5 even the whole range holds the median with less than 95 %
LEVEL = 0.95
RESAMPLES = 4000
BLOCK = 1 << 21  # resampled values held at once

Floats = NDArray[np.float64]


def stat(samples: Sequence[float], *, statistic: str = "median", seed: int = 0) -> dict[str, Any]:
    """The median or mean of `samples` with its interval; equal samples and seed give equal bits.

    No samples, or one that is not finite, give nulls and a "reason", since a record holds neither NaN nor infinity.
    """
    if statistic not in ("median", "mean"):
        raise ValueError(f"statistic must be 'median' or 'mean', got {statistic!r}")
    x = np.asarray(samples, np.float64).ravel()
    bad = np.flatnonzero(~np.isfinite(x))
    if not x.size or bad.size:
        reason = f"sample {bad[0]} of {x.size} is {x[bad[0]]}" if bad.size else "no samples"
        return _figure(None, None, None, x.size, "none") | {"reason": reason}
    value = float(np.median(x) if statistic == "median" else x.mean())
    if x.size == 1:
        return _figure(value, None, None, 1, "none") | {"reason": "one sample has no interval"}
    if x.size < FEWEST:
        return _figure(value, float(x.min()), float(x.max()), x.size, "range")
    if statistic == "median":
        return _figure(value, *_order_interval(x), x.size, "order95")
    low, high = _bootstrap_interval(x, seed)
    return _figure(value, min(low, value), max(high, value), x.size, "bootstrap95")


def paired_ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """a[i] / b[i]; ValueError unless they pair up and every b is positive."""
    if len(a) != len(b):
        raise ValueError(f"paired samples differ in number: {len(a)} and {len(b)}")
    if any(not y > 0 for y in b):
        raise ValueError(f"the denominators of a ratio must be positive, got {min(b)}")
    return [x / y for x, y in zip(a, b, strict=True)]


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Median of a[i] / b[i] with its interval: times taken side by side share what disturbs them."""
    return stat(paired_ratios(a, b))


def _figure(value: float | None, low: float | None, high: float | None, n: int, interval: str) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n, "interval": interval}


def _order_interval(x: Floats) -> tuple[float, float]:
    """Interpolate between the two symmetric pairs of order statistics whose coverage encloses `LEVEL`."""
    n, x = x.size, np.sort(x)
    tails = list(accumulate(math.comb(n, i) / 2**n for i in range(n + 1)))  # P(X <= d), X the number of heads
    d = next(i for i, p in enumerate(tails) if p >= (1 - LEVEL) / 2)
    wide, narrow = 1 - 2 * tails[d - 1], 1 - 2 * tails[d]
    share = (wide - LEVEL) / (wide - narrow)
    inner = (n - d) * share / (d + (n - 2 * d) * share)
    low = x[d - 1] + inner * (x[d] - x[d - 1])
    high = x[n - d] - inner * (x[n - d] - x[n - d - 1])
    return float(low), float(high)


def _bootstrap_interval(x: Floats, seed: int) -> tuple[float, float]:
    from scipy.stats import norm, t  # here: medians are also taken on machines without it

    n = x.size
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // n)
    blocks = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    means = np.concatenate([x[rng.integers(0, n, (size, n))].mean(axis=1) for size in blocks])
    tail = float(norm.cdf(math.sqrt(n / (n - 1)) * t.ppf((1 - LEVEL) / 2, n - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
