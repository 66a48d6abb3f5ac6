"""Ranks that say what the sample can tell apart.

Rows are in ascending order of a figure. A row shares the rank of the first row of its group while the two are not told
apart: the 95 % interval of their paired difference, over the items that both were judged on, contains 0. Without
items, the intervals of the two figures overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.measure.stats import stat
from bench.reports.stats import Stat, overlap

__all__ = ["ranks", "told_apart"]


def told_apart(a: Stat, b: Stat, a_items: Sequence[float] = (), b_items: Sequence[float] = ()) -> bool:
    """Whether two figures differ by more than chance, by their items [n] where both have them."""
    if not a_items or len(a_items) != len(b_items):
        return not overlap(a, b)
    change = stat([y - x for x, y in zip(a_items, b_items, strict=True)], statistic="mean")
    low, high = change["low"], change["high"]
    return low is not None and high is not None and not low <= 0 <= high


def ranks(stats: Sequence[Stat], items: Sequence[Sequence[float]] = ()) -> list[str]:
    """Ranks of figures in ascending order, those shared with `=`; an unknown figure has none."""
    held = [*items, *([()] * (len(stats) - len(items)))]
    numbers: list[int] = []
    first = 0  # of the group of rows that share a rank
    for i, figure in enumerate(stats):
        if figure.value is None:
            break
        if i == 0 or told_apart(stats[first], figure, held[first], held[i]):
            first = i
        numbers.append(first + 1)
    texts = [f"{n}=" if numbers.count(n) > 1 else str(n) for n in numbers]
    return texts + [""] * (len(stats) - len(texts))
