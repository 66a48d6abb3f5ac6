"""A measured figure with its 95 % interval, how it is read from a record, pooled over seeds, and written as text.

Text follows the rounding rule of the Particle Data Group (Review of Particle Physics, introduction, 5.3): the
half-width, here the distance to the farther end of the interval, keeps two digits when they are below 3.55 and one
otherwise, and the value is cut at the same decimal place. A figure without an interval gets a fixed number of
significant digits. An interval that reaches much farther on one side, or farther than the value though it does not
contain 0, is written out as `value [low, high]`. A difference whose interval contains 0, or a ratio whose interval
contains 1, is marked `≈`; a time that the machine disturbed is marked `†`, whatever its interval.
"""

# ruff: noqa: RUF001
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean, variance
from typing import Any

from scipy.stats import t

__all__ = [
    "DISTURBED",
    "MISSING",
    "SAME",
    "Stat",
    "estimate_text",
    "number_or_none",
    "number_text",
    "overlap",
    "pool",
    "read_stat",
]

MISSING = "–"
SAME = "≈"
DISTURBED = "†"
SMALL, LARGE = 1e-3, 1e6  # shown sizes without an exponent
TWO_DIGITS = 3.545
LOPSIDED = 2.5  # times as far to one end of an interval as to the other
Z95 = 1.959964  # normal quantile, for turning an interval into a standard error and back


@dataclass(frozen=True)
class Stat:
    """A value with its interval and, where it was compared, the paired difference to the baseline with its own."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    delta: float | None = None
    delta_low: float | None = None
    delta_high: float | None = None
    p_value: float | None = None

    @property
    def difference(self) -> Stat:
        """The paired difference as a figure of its own."""
        return Stat(self.delta, self.delta_low, self.delta_high, self.n, p_value=self.p_value)

    def contains(self, neutral: float) -> bool:
        """Whether the interval of `value` is known and contains `neutral`."""
        return self.low is not None and self.high is not None and self.low <= neutral <= self.high

    def map(self, a: float, b: float = 0.0) -> Stat:
        """a * value + b, the interval's ends kept in order; the difference is scaled by a alone."""

        def line(x: float | None, c: float = b) -> float | None:
            return None if x is None else a * x + c

        flip = a < 0
        low, high = line(self.low), line(self.high)
        dlow, dhigh = line(self.delta_low, 0.0), line(self.delta_high, 0.0)
        return replace(
            self,
            value=line(self.value),
            low=high if flip else low,
            high=low if flip else high,
            delta=line(self.delta, 0.0),
            delta_low=dhigh if flip else dlow,
            delta_high=dlow if flip else dhigh,
        )


def number_or_none(raw: Any) -> float | None:
    """`raw` as a finite float; anything else, also booleans, text and NaN, is None."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    return float(raw) if math.isfinite(raw) else None


def read_stat(raw: Any) -> Stat:
    """A stat from its JSON form; a plain number is a value without interval, anything else is unknown."""
    if not isinstance(raw, dict):
        return Stat(number_or_none(raw))
    n = number_or_none(raw.get("n"))
    figures = {name: number_or_none(raw.get(name)) for name in Stat.__dataclass_fields__ if name != "n"}
    return Stat(n=None if n is None else int(n), **figures)


def pool(stats: Sequence[Stat]) -> Stat:
    """One figure over seeds: the mean. Its reach is the root of the squares of that within a seed (the items are the
    same ones for every seed, so it does not shrink) and of that of the seeds' mean by Student's t. The largest p-value
    stands for all."""
    known = [s for s in stats if s.value is not None]
    if len(known) < 2:
        return known[0] if known else (stats[0] if stats else Stat())
    value, low, high = _pool([(s.value, s.low, s.high) for s in known])
    delta, delta_low, delta_high = _pool([(s.delta, s.delta_low, s.delta_high) for s in known])
    ns = [s.n for s in known if s.n is not None]
    ps = [s.p_value for s in known if s.p_value is not None]
    largest_p = max(ps) if len(ps) == len(known) else None
    return Stat(value, low, high, max(ns) if ns else None, delta, delta_low, delta_high, largest_p)


@cache
def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    return float(t.ppf(0.975, freedom))


def _pool(seeds: Sequence[tuple[float | None, float | None, float | None]]) -> tuple[float | None, ...]:
    values = [v for v, _, _ in seeds if v is not None]
    if not values:
        return None, None, None
    mean = fmean(values)
    down = [v - low for v, low, _ in seeds if v is not None and low is not None]
    up = [high - v for v, _, high in seeds if v is not None and high is not None]
    if len(down) < len(values) or len(up) < len(values):
        return mean, None, None
    between = student(len(values) - 1) ** 2 * variance(values) / len(values) if len(values) > 1 else 0.0
    reach = [math.sqrt(fmean(d * d for d in side) + between) for side in (down, up)]
    return mean, mean - reach[0], mean + reach[1]


def overlap(a: Stat, b: Stat) -> bool:
    """Whether two intervals share a point; a figure without an interval is its value alone."""
    if a.value is None or b.value is None:
        return False
    a_low, a_high = a.value if a.low is None else a.low, a.value if a.high is None else a.high
    b_low, b_high = b.value if b.low is None else b.low, b.value if b.high is None else b.high
    return a_low <= b_high and b_low <= a_high


def number_text(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """`value` to `digits` significant digits (0: as an integer), with an exponent below 0.001 and from a million on."""
    if value is None:
        return MISSING
    if value == 0 or not digits:
        return f"{value:.0f}"
    size = abs(value)
    if size < SMALL or size >= LARGE:
        return (
            f"{value:{'+' if signed else ''}.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
        )
    return _fixed(value, digits - 1 - math.floor(math.log10(size)), signed)


def estimate_text(
    stat: Stat, digits: int = 3, signed: bool = False, neutral: float | None = None, disturbed: bool = False
) -> str:
    """`value ± half-width`, digits limited by the interval; `≈` where it contains `neutral`, `†` if `disturbed`."""
    if stat.value is None:
        return MISSING
    same = neutral is not None and stat.contains(neutral)
    mark = "".join(f" {sign}" for sign, on in ((SAME, same), (DISTURBED, disturbed)) if on)
    if lopsided(stat):
        ends = ", ".join(number_text(end, 2, signed) for end in (stat.low, stat.high))
        return f"{number_text(stat.value, 2, signed)} [{ends}]{mark}"
    reaches = [abs(end - stat.value) for end in (stat.low, stat.high) if end is not None]
    half = max(reaches, default=0.0)
    if half == 0:
        return number_text(stat.value, digits, signed) + mark
    size = max(half, abs(stat.value))
    if SMALL <= size < LARGE:
        return _around(stat.value, half, signed) + mark
    exponent = math.floor(math.log10(size))
    return f"({_around(stat.value / 10.0**exponent, half / 10.0**exponent, signed)})e{exponent}{mark}"


def lopsided(stat: Stat) -> bool:
    """Whether `value ± half-width` would misstate the interval."""
    if stat.value is None or stat.low is None or stat.high is None:
        return False
    near, far = sorted((stat.value - stat.low, stat.high - stat.value))
    swallowed = far > abs(stat.value) and not stat.contains(0.0)
    return far > 0 and (swallowed or (far > LOPSIDED * near and far > 0.05 * abs(stat.value)))


def _around(value: float, half: float, signed: bool) -> str:
    exponent = math.floor(math.log10(half))
    decimals = (1 if half / 10.0**exponent < TWO_DIGITS else 0) - exponent
    return f"{_fixed(value, decimals, signed)} ± {_fixed(half, decimals)}"


def _fixed(value: float, decimals: int, signed: bool = False) -> str:
    rounded = round(value, decimals) + 0.0  # + 0.0: no minus zero
    return f"{rounded:{'+' if signed and rounded else ''}.{max(decimals, 0)}f}"
