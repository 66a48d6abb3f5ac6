"""Seconds of calls that take turns: on a GPU by device events with cold caches, on the CPU by the thread's own clock.

    graph      time of the kernels alone: a CUDA graph of many calls, replayed, divided by their number. The calls go
               round several copies of their inputs, together larger than the second-level cache, so none finds its own.
    eager      time between two events round one call as Python issues it, the cache overwritten just before (with
               twice its size): the kernel, and the wait for the host where that is slower.
    dispatch   the host's seconds inside that call.

Each round runs every call once; the order is rotated and every second round reversed. On the CPU there is no graph,
and `eager` is the thread's CPU time.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["CpuWatch", "CudaWatch", "Samples", "SubjectError", "Watch", "lost", "measure", "one_line", "watch_for"]

Calls = Sequence[Callable[[], Any]]
GRAPH_CALLS = 16  # in a replay, unless these take longer than REPLAY_S: events resolve half a microsecond
REPLAY_S = 2e-3
FEWEST = 7
COPY_BYTES = 3  # times the second-level cache that the rotated inputs of one call fill together
MOST_COPIES = 96


class SubjectError(RuntimeError):
    """A call of the subject `name` failed while it was timed."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name, self.why = name, why


@dataclass
class Samples:
    """Seconds a call, one sample a round; `graph_reason` says why there are none of a graph."""

    graph: list[float] = field(default_factory=list)
    eager: list[float] = field(default_factory=list)
    dispatch: list[float] = field(default_factory=list)
    graph_reason: str = ""


class Watch(ABC):
    """How calls are timed on one device."""

    device: str
    timing: str
    flush_bytes = 0
    cache_bytes = 0

    def copies(self, moved_bytes: int) -> int:
        """How many copies of the inputs of a call that moves `moved_bytes` it takes to keep the cache cold."""
        return max(1, min(MOST_COPIES, -(-COPY_BYTES * self.cache_bytes // max(moved_bytes, 1))))

    @abstractmethod
    def once(self, call: Callable[[], Any]) -> tuple[float, float]:
        """(seconds on the device, seconds of the host) of one call."""

    @abstractmethod
    def replay(self, calls: Calls) -> Callable[[], float] | str:
        """A function that runs all of `calls` and returns the seconds of one, or why there is none."""


class CpuWatch(Watch):
    """CPU seconds of this thread, which other processes disturb least."""

    device = "cpu"
    timing = "CPU time of the thread"

    def once(self, call: Callable[[], Any]) -> tuple[float, float]:
        begin = time.thread_time()
        call()
        spent = time.thread_time() - begin
        return spent, spent

    def replay(self, calls: Calls) -> Callable[[], float] | str:
        return "there are no CUDA graphs on the CPU"


class CudaWatch(Watch):
    """Device events on the current stream of the current GPU."""

    device = "cuda"
    timing = "device events"

    def __init__(self) -> None:
        self.cache_bytes = int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)
        self.flush_bytes = max(2 * self.cache_bytes, 1 << 20)
        self._flush = torch.empty(self.flush_bytes, dtype=torch.uint8, device="cuda")

    def once(self, call: Callable[[], Any]) -> tuple[float, float]:
        begin, end = _event(), _event()
        self._flush.zero_()
        begin.record()
        start = time.perf_counter()
        call()
        host = time.perf_counter() - start
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3, host

    def replay(self, calls: Calls) -> Callable[[], float] | str:
        once = min(self.once(calls[0])[0] for _ in range(2))
        n = len(calls) * max(1, round(min(GRAPH_CALLS, REPLAY_S / max(once, 1e-9)) / len(calls)))
        if reason := _waits(calls[0]):
            return f"cannot be captured: {reason}"
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for i in range(n):
                    calls[i % len(calls)]()
            graph.replay()
            torch.cuda.synchronize()
        except Exception as error:
            torch.cuda.synchronize()  # raises for a lost device, which the caller must know of
            return f"cannot be captured: {one_line(error)}"

        def seconds() -> float:
            begin, end = _event(), _event()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3 / n

        return seconds


def _waits(call: Callable[[], Any]) -> str:
    """Why a call that waits for the device cannot be captured, else nothing.

    Found out before: a capture that fails can leave torch's allocator believing that it is still under way.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return one_line(error)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return ""


def watch_for(device: str) -> Watch:
    """The watch of "cuda" or "cpu"."""
    return CudaWatch() if device == "cuda" else CpuWatch()


def measure(watch: Watch, subjects: Mapping[str, Calls], rounds: int, seconds: float) -> dict[str, Samples]:
    """Samples of every subject's calls, in turns; each has been run before, so that nothing is compiled here.

    At most `rounds` rounds of each kind of time, and no further one after `seconds`, but at least `FEWEST`. Raises
    SubjectError naming the subject whose call failed.
    """
    out = {name: Samples() for name in subjects}
    replays: dict[str, Callable[[], float]] = {}
    for name, calls in subjects.items():
        try:
            made = watch.replay(calls)
        except Exception as error:
            raise SubjectError(name, one_line(error)) from error
        if isinstance(made, str):
            out[name].graph_reason = made
        else:
            replays[name] = made
    begin = time.perf_counter()
    for i in range(-1, rounds):
        if i >= FEWEST and time.perf_counter() - begin > seconds:
            break
        for name in _turn(list(subjects), i):
            calls = subjects[name]
            try:
                device_s, host_s = watch.once(calls[i % len(calls)])
                kernel_s = replays[name]() if name in replays else None
            except Exception as error:
                raise SubjectError(name, one_line(error)) from error
            if i < 0:
                continue  # a warm-up
            out[name].eager.append(device_s)
            out[name].dispatch.append(host_s)
            if kernel_s is not None:
                out[name].graph.append(kernel_s)
    return out


def lost() -> str:
    """Why the GPU does not answer any more, else nothing."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return ""
    try:
        torch.cuda.synchronize()
    except Exception as error:
        return one_line(error)
    return ""


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of its text, at most 200 characters."""
    text = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {text}"[:200]


def _turn(names: list[str], i: int) -> list[str]:
    shift = (i // 2) % len(names)
    order = names[shift:] + names[:shift]
    return order[::-1] if i % 2 else order


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
