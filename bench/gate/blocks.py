"""Blocks of samples in which the versions take turns.

In a block every version gets new copies of its inputs, made in random order at random offsets, because where a buffer
lies alone can be worth a percent. Then each is sampled once in some order and once in the reverse order, so that a
steady drift cancels. Reversal alone is not fair: the two calls in the middle have a version to themselves, and what
ran just before is still in the caches. So the order changes from block to block, through all permutations.
"""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from numpy.random import Generator

from bench.gate.clocks import Stopwatch

__all__ = ["Call", "Maker", "blocks"]

Call = Callable[[], Any]
Maker = Callable[[Generator], Call]


def blocks(
    makers: Mapping[str, Maker], clock: Stopwatch, rng: Generator, *, alike: bool = True
) -> Iterator[dict[str, float]]:
    """Without end: the mean logarithm of the seconds of one call, for each version.

    A maker returns a call on inputs of its own. Versions that are `alike` run equally often in a sample, as often as
    the fastest needs; others as often as each needs.
    """
    names = list(makers)
    orders = list(itertools.permutations(names))
    runs = {name: _runs(make(rng), clock) for name, make in makers.items()}
    if alike:
        runs = dict.fromkeys(names, max(runs.values()))
    clock.elsewhere()
    while True:
        rng.shuffle(orders)
        for order in orders:
            calls = {names[i]: makers[names[i]](rng) for i in rng.permutation(len(names))}
            for call in calls.values():
                call()
            gc.collect(0)
            logs = dict.fromkeys(names, 0.0)
            for name in (*order, *reversed(order)):
                logs[name] += math.log(max(clock(calls[name], runs[name]), 1e-12)) / 2
            yield logs


def _runs(call: Call, clock: Stopwatch) -> int:
    """The first run of a call prepares too much to tell."""
    clock(call)
    return clock.runs(clock(call))
