"""Run blocks: make every competitor ready, check it, time all of them in turns, and hand out a record for each.

The budget is kept at every step that can be long (making a subject may compile and tune it). What does not fit, what
fails and what is wrong is a record too. After an error that takes the device away no figure of this process is to be
trusted: `DeviceLostError` ends it, and the next process goes on without the subject that did it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from bench.gpu.ceilings import Ceilings
from bench.gpu.machine import interpreter_on
from bench.gpu.shapes import Block
from bench.gpu.store import Record
from bench.gpu.subjects import Ready, Stock, Subject
from bench.gpu.timing import Samples, SubjectError, Watch, measure, one_line
from bench.measure.stats import paired_ratio, stat

__all__ = ["Budget", "DeviceLostError", "Sweep", "refuse_interpreter"]

WARM_UP = 3
OUT_OF_TIME = "the time budget ended before it"


class DeviceLostError(RuntimeError):
    """The device does not answer any more; the record of who did it is written."""


@dataclass
class Budget:
    """Seconds for the whole sweep, and how much of them a block's rounds may take."""

    seconds: float = float("inf")
    rounds: int = 25
    block_seconds: float = 1.5

    def __post_init__(self) -> None:
        self._begin = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self._begin)


class Sweep:
    """Everything that is the same for the blocks of one run."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        watch: Watch,
        ceilings: Ceilings,
        emit: Callable[[Record], None],
        budget: Budget,
        about: Mapping[str, Any],
        clocks: Callable[[], Mapping[str, Any]],
        wanted: Callable[[Block, Subject], bool] = lambda block, subject: True,
    ) -> None:
        refuse_interpreter()
        self.subjects, self.watch, self.ceilings, self.emit = list(subjects), watch, ceilings, emit
        self.budget, self.about, self.clocks, self.wanted = budget, about, clocks, wanted
        self.stock = Stock(watch.device)
        self.out_of_time: list[str] = []
        self.samples: dict[str, Samples] = {}  # of the last block

    def run(self, blocks: Iterable[Block], done: frozenset[str] = frozenset()) -> None:
        """Time the blocks in their order; subjects whose key is in `done` are left out of a block.

        A subject that cannot run here is one record, whatever the number of blocks.
        """
        able = []
        for subject in self.subjects:
            if reason := subject.lacks(self.watch.device):
                self.emit(self.absent(subject, reason))
            else:
                able.append(subject)
        for block in blocks:
            there = [s for s in able if s.takes(block) and self.wanted(block, s)]
            fresh = [s for s in there if s.level == "baseline" or self.key(block, s) not in done]
            if all(s.level == "baseline" for s in fresh):
                continue
            if self.budget.left <= 0:
                self.out_of_time.append(str(block))
            else:
                self.block(block, fresh)

    def block(self, block: Block, competing: Sequence[Subject]) -> list[Record]:
        """Time one block and hand out its records; they are returned too."""
        begin = time.monotonic()
        started = _now()
        ready: dict[str, Ready] = {}
        heads: dict[str, Record] = {}
        for subject in competing:
            status, reason, error = self.prepare(subject, block, ready)
            heads[subject.name] = self.record(block, subject, started)
            heads[subject.name] |= {"status": status, "reason": reason, "relative_error": error}
        self.samples = samples = self.timed(block, ready, heads)
        base = next((samples[s.name] for s in competing if s.level == "baseline" and s.name in samples), None)
        clocks = dict(self.clocks()) if ready else {}
        for name, one in ready.items():
            try:
                figures = self.figures(one, samples[name], base)
                heads[name] |= {"implementation": one.implementation(), "clocks": clocks, **figures}
            except Exception as error:
                heads[name] |= {"status": "failed", "reason": one_line(error)}
        ready.clear()
        for record in heads.values():
            self.emit(record | {"wall_s": time.monotonic() - begin})
        if self.watch.device == "cuda":
            torch.cuda.empty_cache()  # graphs keep their own pools
        return list(heads.values())

    def timed(self, block: Block, ready: dict[str, Ready], heads: Mapping[str, Record]) -> dict[str, Samples]:
        """Samples of all that is ready; who fails while it is timed is taken out, and the others are timed anew."""
        while ready:
            calls = {name: one.calls for name, one in ready.items()}
            try:
                return measure(self.watch, calls, self.budget.rounds, self.budget.block_seconds)
            except SubjectError as error:
                heads[error.name].update(status="failed", reason=error.why)
                self.still_there(heads[error.name], error.name, block)
                del ready[error.name]
        return {}

    def still_there(self, head: Mapping[str, Any], name: str, block: Block) -> None:
        """Raise DeviceLostError, its record written, when the device does not answer any more."""
        try:
            self.settle()
        except Exception as error:
            reason = f"lost the device: {head['reason']}"
            self.emit({**head, "status": "failed", "reason": reason})
            raise DeviceLostError(f"{name}, {block}: {head['reason']}") from error

    def prepare(self, subject: Subject, block: Block, ready: dict[str, Ready]) -> tuple[str, str, float | None]:
        """Make a subject, warm it up and check it: (status, reason, relative error); an ok one is put into `ready`."""
        if self.budget.left <= 0:
            return "skipped", OUT_OF_TIME, None
        try:
            one = subject.make(block, self.stock, self.watch)
            for call in [*one.calls, *[one.calls[0]] * WARM_UP]:
                call()
            wrong, error = one.check()
            self.settle()
        except torch.OutOfMemoryError as oom:
            return "oom", one_line(oom), None
        except Exception as failure:
            reason = one_line(failure)
            self.still_there(self.record(block, subject, _now()) | {"reason": reason}, subject.name, block)
            return "failed", reason, None
        if wrong is not None:
            return "wrong", wrong, error
        ready[subject.name] = one
        return "ok", "", error

    def figures(self, one: Ready, own: Samples, base: Samples | None) -> dict[str, Any]:
        """Times, ratios to the baseline, and rates with their shares of the ceilings."""
        graph = stat(own.graph) | ({"reason": own.graph_reason} if own.graph_reason else {})
        out: dict[str, Any] = {
            "graph_s": graph,
            "eager_s": stat(own.eager),
            "dispatch_s": stat(own.dispatch),
            "time_kind": "graph" if own.graph else "eager",
            "copies": len(one.calls),
            "rounds": len(own.eager),
            "flush_bytes": self.watch.flush_bytes,
            "moved_bytes": one.moved_bytes,
            "flop": one.flop,
        }
        out["time_s"] = out[f"{out['time_kind']}_s"]
        seconds = out["time_s"]["value"]
        out["speedup"] = _ratio(base.graph if own.graph else base.eager, own) if base else stat([])
        out["speedup_eager"] = paired_ratio(base.eager, own.eager) if base else stat([])
        if seconds:
            rate, work = one.moved_bytes / seconds, one.flop / seconds
            out |= {"bandwidth_bytes_per_s": rate, "bandwidth_share": rate / self.ceilings.bandwidth}
            out |= {"flop_per_s": work, "flop_share": work / self.ceilings.product} if one.flop else {}
        return out

    def key(self, block: Block, subject: Subject) -> str:
        """Which figure it is."""
        return f"{self.about['device_name']} / {block} / {subject.level} / {subject.name}"

    def record(self, block: Block, subject: Subject, started: str) -> Record:
        """What every record of a block says."""
        return {
            "kind": "kernel",
            "key": self.key(block, subject),
            "device": self.watch.device,
            "timing": self.watch.timing,
            "operation": block.operation,
            "n": block.shape.n,
            "k": block.shape.k,
            "m": block.m or None,
            "layer": block.shape.layer,
            "dtype": "bfloat16",
            "subject": subject.name,
            "level": subject.level,
            "method": subject.method,
            "started_utc": started,
            "ceilings": self.ceilings.as_dict(),
            "provenance": self.about,
        }

    def absent(self, subject: Subject, reason: str) -> Record:
        """The record of a subject that cannot run here."""
        out: Record = {"kind": "skipped", "key": f"{self.about['device_name']} / skipped / {subject.name}"}
        out |= {"status": "skipped", "reason": reason, "subject": subject.name, "level": subject.level}
        return out | {"device": self.watch.device, "provenance": self.about}

    def settle(self) -> None:
        """Wait for the device; raises what it has to report."""
        if self.watch.device == "cuda":
            torch.cuda.synchronize()


def refuse_interpreter() -> None:
    """Raise ValueError while Triton's interpreter is on."""
    if interpreter_on():
        raise ValueError(
            "TRITON_INTERPRET is set: times of interpreted kernels mean nothing; unset it to measure speed"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _ratio(base: Sequence[float], own: Samples) -> dict[str, Any]:
    mine = own.graph or own.eager
    if len(base) != len(mine):
        return stat([]) | {"reason": "the baseline has no graph to compare with"}
    return paired_ratio(base, mine)
