"""One run from beginning to end: open the folder, reuse what is on record, execute the rest, write the report."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console, RenderableType

from bench.child import EXECUTOR
from bench.errors import StoppedError
from bench.estimate import Estimate
from bench.experiment import Experiment
from bench.interrupts import Interrupts
from bench.plan import Fingerprints, Plan, make_plan, missing_device
from bench.progress import Lines, LiveTable, headline
from bench.provenance import command
from bench.records import Record, Store, cell_of, current, latest
from bench.run import run
from bench.schedule import count_workers
from bench.schema import SCHEMA, Cell

__all__ = ["Options", "Reports", "report", "run_session"]

FAILURES = ("failed", "oom", "timeout")


@dataclass(frozen=True)
class Options:
    """How to run. `threads` are the cores to use, by several workers or by one cell.

    `past` gives records of any folder, from which the time is estimated.
    """

    out: Path
    device: str = "cpu"
    threads: int = 1
    timeout_s: float = 1800.0
    force: str | None = None
    rerun: tuple[str, ...] = ("failed", "oom", "timeout", "skipped", "interrupted")
    plots: bool = True
    executor: str = EXECUTOR
    past: Callable[[], Iterable[Record]] = tuple


@dataclass(frozen=True)
class Reports:
    """The two ways to show records: files in a folder, and a table for a terminal of some width."""

    write: Callable[..., list[Path]]
    table: Callable[[list[Record], int], RenderableType]


def run_session(
    experiment: Experiment, cells: Sequence[Cell], fingerprints: Fingerprints, reports: Reports, options: Options
) -> int:
    """Run `cells` and return the exit code: 0, 1 when a cell failed, 130 when interrupted.

    The final table goes to stdout, everything else to stderr.
    """
    notes = Console(stderr=True, highlight=False)
    with Store(options.out) as store, Interrupts() as interrupts:
        for message in store.messages:
            notes.print(f"warning: {message}", markup=False, soft_wrap=True)
        plan = make_plan(
            cells,
            experiment,
            store.records,
            fingerprints,
            device=options.device,
            threads=options.threads,
            force=options.force,
            rerun=options.rerun,
        )
        if plan.reused:
            notes.print(f"{len(plan.reused)} of {len(plan.jobs)} cells reused, {len(plan.todo)} to do")
        if reason := missing_device(options.device):
            notes.print(f"skipped: {len(plan.todo)} cells, {reason}", markup=False, soft_wrap=True)
            _skip(plan, store, reason)
        elif plan.todo:
            _execute(experiment, plan, store, reports, options, notes, interrupts)
        by_key = latest(store.records)
        if interrupts.received:
            saved = sum(by_key.get(job.key, {}).get("status") not in (None, "interrupted") for job in plan.jobs)
            again = shlex.join(command())
            notes.print(
                f"interrupted: {saved} of {len(plan.jobs)} cells saved. Resume: {again}", markup=False, soft_wrap=True
            )
            return 130
        records = [by_key[job.key] for job in plan.jobs]
        folder = current(store.records)
    report(folder, reports, options.out, notes, plots=options.plots, ran=records)
    return 1 if any(record["status"] in FAILURES for record in records) else 0


def _execute(
    experiment: Experiment,
    plan: Plan,
    store: Store,
    reports: Reports,
    options: Options,
    notes: Console,
    interrupts: Interrupts,
) -> None:
    estimate = Estimate([*options.past(), *store.records])
    cells = [job.cell for job in plan.todo]
    workers = count_workers(cells, options.threads, psutil.virtual_memory().available)
    notes.print(f"{len(cells)} cells to do, {estimate.said(cells, workers)}", markup=False, soft_wrap=True)
    watcher: Lines | LiveTable
    if notes.is_terminal:
        watcher = LiveTable(plan.todo, plan.reused, estimate, workers, notes, reports.table)
    else:
        watcher = Lines(plan.todo, len(plan.reused), estimate, workers, notes)
    with watcher:
        run(
            plan.todo,
            experiment.protocol,
            store,
            watcher,
            interrupts,
            executor=options.executor,
            threads=options.threads,
            workers=workers,
            timeout_s=options.timeout_s,
            seconds=estimate.cell_s,
        )


def _skip(plan: Plan, store: Store, reason: str) -> None:
    """A cell that cannot run here is on record too."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for job in plan.todo:
        fate = {"status": "skipped", "reason": reason, "started_utc": now, "wall_s": 0.0}
        store.append({"schema": SCHEMA, **job.head, "cell": job.cell.as_dict(), "key": job.key, **fate})


def report(
    records: list[Record],
    reports: Reports,
    out: Path,
    notes: Console,
    *,
    plots: bool,
    ran: Sequence[Record] | None = None,
) -> None:
    """Write the report of `records`, all those of the folder `out`, and show the table on stdout.

    `notes` gets what failed and the tally: of the cells that were `ran`, or of all when there was no run.
    """
    written: list[Path] = []
    if any(record["status"] == "ok" for record in records):
        before = _listed(out)
        try:
            written = reports.write(out, records, plots=plots)
            for path in before.difference(written):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StoppedError(f"cannot write the report to {out}: {error}; the records are safe") from None
        screen = Console()
        screen.print(reports.table(records, screen.width))
    told = records if ran is None else ran
    for record in told:
        if record["status"] in FAILURES:
            notes.print(f"{record['status']}  {cell_of(record)}  {headline(record)}", markup=False, soft_wrap=True)
    counts = Counter(record["status"] for record in told)
    tally = ", ".join(f"{n} {status}" for status, n in counts.items())
    whole = f" of all {len(records)} cells in the folder" if len(records) > len(told) else ""
    where = f" Report{whole}: {written[-1]}" if written else ""
    notes.print(f"{len(told)} cells: {tally}.{where}", markup=False, soft_wrap=True)


def _listed(out: Path) -> set[Path]:
    """The tables and plots that the report in `out` links to: the next report replaces these, and no other file."""
    try:
        text = (out / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return set()
    return {out / link for link in re.findall(r"\]\(((?:tables|plots)/[\w.-]+)\)", text)}
