"""Seconds that a call takes, and calls that take turns.

On the CPU the wall clock. On CUDA the time between two events on the stream, after the second-level cache has been
overwritten (with twice its size): the weights of a model in use do not sit there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["Clock", "interleaved"]

SAMPLE = 0.01
MOST_RUNS = 1000
LATEST = 4  # rounds whose duration predicts that of the next


class Clock:
    """`clock(call)` runs `call` once and returns its seconds."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flush: torch.Tensor | None = None
        if device.type == "cuda":
            cache = int(torch.cuda.get_device_properties(device).L2_cache_size)
            self._flush = torch.empty(max(2 * cache, 1 << 20), dtype=torch.uint8, device=device)

    def __call__(self, call: Callable[[], Any]) -> float:
        if self._flush is None:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        with torch.cuda.device(self.device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            self._flush.zero_()
            begin.record()
            call()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1000


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    clock: Callable[[Callable[[], Any]], float],
    fewest: int,
    most: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Seconds of each call, one sample a round; every second round runs them in reverse order.

    A sample of a call shorter than `SAMPLE` seconds is the mean of as many runs as fill them, since what ran just
    before (its own reverse-order twin, or a rival that emptied the cache) would otherwise decide it. Each is warmed up
    before. At least `fewest` rounds are run, and further ones, up to `most`, while the next is expected to end within
    `seconds`, the warm-up included.
    """
    begin = time.perf_counter()
    runs = {call: _runs(call, clock) for call in dict.fromkeys(calls.values())}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    ends = [time.perf_counter()]
    for i in range(most):
        if i >= fewest:
            recent = ends[-LATEST:]
            if ends[-1] + (recent[-1] - recent[0]) / (len(recent) - 1) > begin + seconds:
                break
        for name in list(calls)[:: -1 if i % 2 else 1]:
            n = runs[calls[name]]
            samples[name].append(clock(_repeated(calls[name], n)) / n)
        ends.append(time.perf_counter())
    return samples


def _runs(call: Callable[[], Any], clock: Callable[[Callable[[], Any]], float]) -> int:
    """Warm `call` up and say how many runs fill a sample; the first run of a short call prepares too much to tell."""
    first = clock(call)
    once = clock(call) if first < 10 * SAMPLE else first
    return max(1, min(MOST_RUNS, math.ceil(SAMPLE / max(once, 1e-9))))


def _repeated(call: Callable[[], Any], n: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(n):
            call()

    return run
