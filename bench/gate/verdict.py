"""What a series of blocks says: SLOW, FASTER, OK or INCONCLUSIVE.

The `margin` is the slow-down that must be found. A change is judged by the 20 % trimmed mean of its blocks' log-ratios
(new time / reference time), with a percentile bootstrap over the blocks, its level widened from the normal to the t
quantile (Hesterberg 2015, The American Statistician 69:371), and beside it a control: the reference loaded a second
time, in the same blocks.

    SLOW          the whole interval lies above half the margin, and above the control's
    FASTER        the same, below
    OK            the interval ends below the margin, and the control's lies within it
    INCONCLUSIVE  none of these after the last look: too noisy here

Between half the margin and the whole of it both SLOW and OK may be right. There are several looks, each at its share
of the 5 % error, so that clear cases end early. Over many cases a few would be called slow by chance: a SLOW case is
measured anew, and the second measurement, which was not selected, counts. So a case that is exactly half the margin
slower, the worst that may pass, is called SLOW twice with probability 0.025^2: below 2 % for thirty such cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Finding", "Interval", "Rule", "change_since", "decide", "interval", "judge", "trimmed_means"]

TRIM = 0.2
RESAMPLES = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """`margin` as a fraction; `looks` are numbers of blocks; `error` of the whole series of looks, two-sided."""

    margin: float = 0.05
    looks: tuple[int, ...] = (18, 36, 72)
    error: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise ValueError(f"margin must be between 0 and 1 (5 % is 0.05), got {self.margin}")

    @property
    def level(self) -> float:
        """Confidence of each look."""
        return 1 - self.error / len(self.looks)


@dataclass(frozen=True)
class Interval:
    """A ratio with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Finding:
    """A verdict, why where it needs saying, the ratio new / reference, the control's, and the blocks they rest on."""

    verdict: str
    reason: str
    change: Interval
    control: Interval
    blocks: int


def decide(stream: Iterator[Mapping[str, float]], rule: Rule, seed: int) -> Finding:
    """Take blocks of log-seconds of "reference", "again" and "new" from `stream` until a look decides."""
    changes: list[float] = []
    controls: list[float] = []
    for look in rule.looks:
        while len(changes) < look:
            block = next(stream)
            changes.append(block["new"] - block["reference"])
            controls.append(block["again"] - block["reference"])
        change, control = (interval(logs, rule.level, seed) for logs in (changes, controls))
        verdict, reason = judge(change, control, rule.margin)
        if verdict in ("SLOW", "FASTER") or (verdict == "OK" and change.low > 1 / (1 + rule.margin)):
            break  # OK that may yet turn out to be FASTER is looked at again
    return Finding(verdict, reason, change, control, len(changes))


def judge(change: Interval, control: Interval, margin: float) -> tuple[str, str]:
    """(verdict, reason) for a `change` beside its `control`; see above."""
    half, whole = math.sqrt(1 + margin), 1 + margin
    if change.low > max(half, control.high):
        return "SLOW", ""
    if change.high < min(1 / half, control.low):
        return "FASTER", ""
    if control.low < 1 / whole or control.high > whole:
        return "INCONCLUSIVE", f"the reference beside itself is {control}, no narrower than the margin of {margin:.1%}"
    if change.high < whole:
        return "OK", ""
    return "INCONCLUSIVE", f"{change} may be on either side of the margin of {margin:.1%}"


def interval(logs: Sequence[float], level: float, seed: int) -> Interval:
    """exp of the trimmed mean of `logs` with its interval; equal logs and seed give equal bits."""
    x = np.asarray(logs, np.float64)
    low, high = np.quantile(_resampled(x, np.random.default_rng(seed)), _tails(x.size, level))
    return _interval(_trimmed(x), low, high)


def change_since(before: Sequence[float], now: Sequence[float], level: float, seed: int) -> Interval:
    """exp of the difference of the trimmed means of two independent series, now / before, with its interval."""
    a, b = np.asarray(before, np.float64), np.asarray(now, np.float64)
    rng = np.random.default_rng(seed)
    low, high = np.quantile(_resampled(b, rng) - _resampled(a, rng), _tails(min(a.size, b.size), level))
    return _interval(_trimmed(b) - _trimmed(a), low, high)


def _interval(value: float, low: float, high: float) -> Interval:
    return Interval(math.exp(value), math.exp(min(low, value)), math.exp(max(high, value)))


def _resampled(x: Floats, rng: np.random.Generator) -> Floats:
    return trimmed_means(x[rng.integers(0, x.size, (RESAMPLES, x.size))])


def _trimmed(x: Floats) -> float:
    return float(trimmed_means(x[None])[0])


def _tails(n: int, level: float) -> tuple[float, float]:
    """The quantiles of the bootstrap that make a `level` interval of a trimmed mean of `n`."""
    from scipy.stats import norm, t  # here: a record is also made on machines without it

    kept = n - 2 * int(TRIM * n)
    tail = float(norm.cdf(math.sqrt(kept / (kept - 1)) * t.ppf((1 - level) / 2, kept - 1)))
    return tail, 1 - tail


def trimmed_means(rows: Floats) -> Floats:
    """The mean of each row without its lowest and highest fifth."""
    n = rows.shape[1]
    cut = int(TRIM * n)
    kept: Floats = np.sort(rows, axis=1)[:, cut : n - cut].mean(axis=1)
    return kept
