"""Runs cells in child processes and records what became of each.

First the judged cells, several workers beside each other with one thread each; then, with nothing beside them, the
cells whose times are measured, on all the threads. A worker executes cells one by one and keeps its cache of models.
When one crashes, is killed or hangs, its cell is marked and a fresh child goes on with the rest. Only this process
writes records.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from bench.child import EXECUTOR, Worker, warm_up
from bench.interrupts import Interrupts
from bench.records import Record, Store
from bench.schedule import ALONE, Schedule
from bench.schema import SCHEMA, Cell
from bench.worker import Outcome

__all__ = ["Job", "Watcher", "run"]


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


def run(
    jobs: Sequence[Job],
    protocol: Any,
    store: Store,
    watcher: Watcher,
    interrupts: Interrupts,
    *,
    executor: str = EXECUTOR,
    threads: int = 1,
    workers: int = 1,
    timeout_s: float = 1800.0,
    seconds: Callable[[Cell], float] = lambda cell: 1.0,
) -> None:
    """Execute `jobs` and append a record of each to `store`; returns early when interrupted.

    `workers` judged cells run at a time; a cell of `ALONE` has all the `threads`. `seconds` is what a cell should take.
    """
    (store.folder / "logs").mkdir(exist_ok=True)
    warm_up(executor)
    crew = _Crew(protocol, store, watcher, interrupts, executor, timeout_s, seconds)
    crew.work([job for job in jobs if job.cell.order not in ALONE], workers, 1)
    crew.work([job for job in jobs if job.cell.order in ALONE], 1, threads)


@dataclass
class _Crew:
    """Workers beside each other, by number; each is busy with one job at most."""

    protocol: Any
    store: Store
    watcher: Watcher
    interrupts: Interrupts
    executor: str
    timeout_s: float
    seconds: Callable[[Cell], float]
    _workers: dict[int, Worker] = field(default_factory=dict)
    _busy: dict[int, Job] = field(default_factory=dict)

    def work(self, jobs: Sequence[Job], n_workers: int, threads: int) -> None:
        """Until no job is left or a signal arrives; no child outlives this."""
        known = {job.cell: job for job in jobs}
        schedule = Schedule(list(known), self.seconds)
        try:
            while not self.interrupts.received:
                for number in range(n_workers):
                    if number not in self._busy and (cell := schedule.take(number)) is not None:
                        self._start(number, known[cell], threads)
                if not self._busy:
                    break
                for number, outcome in self._wait():
                    schedule.finished(self._busy[number].cell)
                    self._end(number, outcome, n_workers)
            self._give_up(n_workers)
        finally:
            for worker in self._workers.values():
                worker.kill()
            for worker in self._workers.values():
                worker.stop()
            self._workers.clear()

    def _start(self, number: int, job: Job, threads: int) -> None:
        self._busy[number] = job
        self.watcher.started(job)
        if number not in self._workers:
            self._workers[number] = Worker(self.executor, threads, self.store.folder / "logs" / "worker.log")
        device = job.head.get("provenance", {}).get("device", "cpu")
        self._workers[number].give(job.cell, self.protocol, self.timeout_s, device)

    def _wait(self) -> list[tuple[int, Outcome]]:
        """The workers whose cells have ended by the time that the first thing happens."""
        busy = {number: self._workers[number] for number in self._busy}
        sources = [source for worker in busy.values() for source in worker.waits_for]
        readable = wait([*sources, self.interrupts.fileno()], min(worker.left_s for worker in busy.values()))
        looks = ((number, worker.look(readable)) for number, worker in busy.items())
        return [(number, outcome) for number, outcome in looks if outcome is not None]

    def _give_up(self, n_workers: int) -> None:
        """What still runs is interrupted."""
        for number in self._busy:
            self._workers[number].kill()
        for number in list(self._busy):
            reason = f"stopped by {signal.Signals(self.interrupts.received).name}"
            self._end(number, Outcome("interrupted", reason), n_workers)

    def _end(self, number: int, outcome: Outcome, n_workers: int) -> None:
        worker, job = self._workers[number], self._busy.pop(number)
        record = _record(job, outcome, worker, self.store.folder / "logs")
        if job.cell.order not in ALONE:
            record["workers"] = n_workers
        if not worker.can_go_on(outcome):
            self._workers.pop(number).stop()
        self.store.append(record)
        self.watcher.finished(record)


def _record(job: Job, outcome: Outcome, worker: Worker, logs: Path) -> Record:
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
        "started_utc": worker.started.isoformat(timespec="seconds"),
        "wall_s": round(worker.wall_s, 3),
        **(outcome.groups or {}),
    }
