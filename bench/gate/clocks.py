"""What a sample is read from: CPU seconds of this thread, or device seconds between two events.

CPU seconds of the one computing thread leave out what other processes take. They also leave out what the code under
test lets other threads do, so `ThreadClock` adds that up in `elsewhere`, and a case with much of it is not judged.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from bench.measure.clock import Clock

__all__ = ["HeldClock", "Stopwatch", "ThreadClock", "one_thread"]

SAMPLE = 0.01  # CPU seconds
MOST_RUNS = 1000
EVENTS = 10  # device times whose median is a sample
HELD_CYCLES = 400_000  # about 0.2 ms on a data-centre GPU: longer than the launches of one call take


class Stopwatch(Protocol):
    """`stopwatch(call, runs)` runs `call` that often and returns the seconds of one run."""

    what: str

    def __call__(self, call: Callable[[], Any], runs: int = 1) -> float: ...

    def runs(self, once: float) -> int:
        """How many runs make a sample of a call that takes `once` seconds."""

    def elsewhere(self) -> float:
        """The share of CPU time that other threads of the process took, since this was last asked."""


class ThreadClock:
    """CPU seconds of this thread."""

    what = "CPU time of the computing thread, one thread"

    def __init__(self) -> None:
        self._own = self._all = 0.0

    def __call__(self, call: Callable[[], Any], runs: int = 1) -> float:
        everything, start = time.process_time(), time.thread_time()
        for _ in range(runs):
            call()
        own = time.thread_time() - start
        self._all += time.process_time() - everything
        self._own += own
        return own / runs

    def runs(self, once: float) -> int:
        return max(1, min(MOST_RUNS, math.ceil(SAMPLE / max(once, 1e-9))))

    def elsewhere(self) -> float:
        share = max(0.0, 1 - self._own / self._all) if self._all else 0.0
        self._own = self._all = 0.0
        return share


class HeldClock(Clock):
    """Device seconds of a call's kernels, each time with a cold second-level cache.

    The device is kept busy while the host launches them, so that the time between the events is that of the kernels
    and not of Python; a call whose launches take longer than that shows its launches.
    """

    what = "device time between events, second-level cache flushed"

    def __call__(self, call: Callable[[], Any], runs: int = 1) -> float:
        return statistics.median(self._once(call) for _ in range(runs))

    def _once(self, call: Callable[[], Any]) -> float:
        with torch.cuda.device(self.device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            if self._flush is not None:
                self._flush.zero_()
            torch.cuda._sleep(HELD_CYCLES)  # type: ignore[no-untyped-call]
            begin.record()
            call()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1000

    def runs(self, once: float) -> int:
        return EVENTS

    def elsewhere(self) -> float:
        return 0.0


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes in the calling thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
