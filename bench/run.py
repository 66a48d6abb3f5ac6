"""Runs cells in a child process and records what became of each.

The child is forked from a server that has imported the heavy libraries, works through the cells one by one and keeps
its cache of models. When it crashes, is killed or hangs, its cell is marked and a fresh child goes on with the rest.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from bench.errors import StoppedError
from bench.interrupts import Interrupts
from bench.records import Record, Store
from bench.schema import SCHEMA, Cell
from bench.worker import Outcome, serve

__all__ = ["EXECUTOR", "Job", "Watcher", "Worker", "run", "warm_up"]

EXECUTOR = "bench.cells:execute"
START_S = 300.0  # importing torch and transformers on a slow disk
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Job:
    """A cell to execute, with all that its record says beforehand: `head` holds the fields known before it runs."""

    cell: Cell
    key: str
    head: Record


class Watcher(Protocol):
    """Is told what happens, to show it."""

    def started(self, job: Job) -> None: ...
    def finished(self, record: Record) -> None: ...


def warm_up(executor: str, threads: int) -> None:
    """Start the server that children are forked from, with `executor`'s libraries loaded, and do not wait for it.

    OpenMP reads its settings when it is loaded: they are set here, before any child exists. A passive wait leaves the
    processor to others between parallel regions.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    heavy = ["torch", "transformers", "quant"] if executor == EXECUTOR else []
    _CONTEXT.set_forkserver_preload([*heavy, executor.partition(":")[0], "bench.worker"])
    with _quiet():
        multiprocessing.forkserver.ensure_running()


@contextmanager
def _quiet() -> Iterator[None]:
    """What a process started inside says on its own output goes nowhere: it would tear the progress display."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, old in zip((1, 2), saved, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(nowhere)


class Worker:
    """One child process and the pipe to it."""

    def __init__(self, executor: str, threads: int, log: Path) -> None:
        self.log = log
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=serve, args=(theirs, executor, threads, log), daemon=True)
        self._process.start()
        theirs.close()
        self._ready = False

    def execute(self, cell: Cell, protocol: Any, timeout_s: float, interrupts: Interrupts) -> tuple[Outcome, bool]:
        """The outcome of `cell`, and whether the child can take another. StoppedError when it never gets ready."""
        if not self._ready:
            first = self._receive(START_S, interrupts)
            if isinstance(first, Outcome) and first.status == "interrupted":
                return first, False
            if first != "ready":
                reason = first.reason if isinstance(first, Outcome) else first
                raise StoppedError(f"the worker process cannot start: {reason}. See {self.log}")
            self._ready = True
        try:
            self._pipe.send((cell, protocol))
        except OSError:
            return self._death(), False
        answer = self._receive(timeout_s, interrupts)
        return answer, answer.status in ("ok", "unsupported", "failed") and self._process.is_alive()

    def _receive(self, timeout_s: float, interrupts: Interrupts) -> Any:
        signalled = interrupts.fileno()
        ready = wait([self._pipe, self._process.sentinel, signalled], timeout_s)
        if self._pipe in ready:
            try:
                return self._pipe.recv()
            except (EOFError, OSError):
                return self._death()
        if signalled in ready:
            return Outcome("interrupted", f"stopped by {signal.Signals(interrupts.received).name}")
        if self._process.sentinel in ready:
            return self._death()
        return Outcome("timeout", f"not finished after {timeout_s:g} s")

    def _death(self) -> Outcome:
        """A SIGKILL that is not ours is nearly always the system's, short of memory."""
        self._process.join(10)
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return Outcome("oom", "the process was killed by SIGKILL, most likely for lack of memory")
        if code is not None and code < 0:
            return Outcome("failed", f"the process died of {signal.Signals(-code).name}; see {self.log.name}")
        return Outcome("failed", f"the process ended with exit code {code}; see {self.log.name}")

    def stop(self) -> None:
        """Kill the child and all that it started."""
        if self._process.pid is not None and self._process.is_alive():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
        self._process.join(10)
        self._pipe.close()


def run(
    jobs: Sequence[Job],
    protocol: Any,
    store: Store,
    watcher: Watcher,
    interrupts: Interrupts,
    *,
    executor: str = EXECUTOR,
    threads: int = 1,
    timeout_s: float = 1800.0,
) -> None:
    """Execute `jobs` in order and append a record of each to `store`; returns early when interrupted."""
    logs = store.folder / "logs"
    logs.mkdir(exist_ok=True)
    warm_up(executor, threads)
    worker: Worker | None = None
    try:
        for job in jobs:
            if interrupts.received:
                break
            watcher.started(job)
            worker = worker or Worker(executor, threads, logs / "worker.log")
            started, clock = datetime.now(UTC), time.perf_counter()
            outcome, alive = worker.execute(job.cell, protocol, timeout_s, interrupts)
            wall_s = time.perf_counter() - clock
            if not alive:
                worker.stop()
                worker = None
            record = _record(job, outcome, started, wall_s, logs)
            store.append(record)
            watcher.finished(record)
    finally:
        if worker is not None:
            worker.stop()


def _record(job: Job, outcome: Outcome, started: datetime, wall_s: float, logs: Path) -> Record:
    reason = outcome.reason
    if outcome.trace:
        (logs / f"{job.key}.txt").write_text(f"{job.cell}\n\n{outcome.trace}", encoding="utf-8")
        reason = f"{reason} (logs/{job.key}.txt)"
    return {
        "schema": SCHEMA,
        **job.head,
        "cell": job.cell.as_dict(),
        "key": job.key,
        "status": outcome.status,
        "reason": reason,
        "started_utc": started.isoformat(timespec="seconds"),
        "wall_s": round(wall_s, 3),
        **(outcome.groups or {}),
    }
