"""What a run shows while it runs: how far it is, how long it still takes, and the cells that are finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from bench.estimate import Estimate, duration
from bench.records import Record, cell_of
from bench.run import Job
from bench.schema import METRICS, Cell

__all__ = ["Lines", "LiveTable", "headline"]


def headline(record: Record) -> str:
    """The figure that says most about a record, or why there is none."""
    if record["status"] != "ok":
        return str(record.get("reason") or "")
    accuracy: dict[str, Any] = record.get("accuracy") or {}
    for name in ("accuracy", *(n for n, metric in METRICS.items() if metric.ranks), *METRICS):
        value = (accuracy.get(name) or {}).get("value")
        if value is not None:
            metric = METRICS[name]
            shown = f"{100 * value:.1f}" if metric.unit == "%" else f"{value:.3g}"
            return f"{metric.heading} {shown} {metric.unit}".rstrip()
    ratio = ((record.get("speed") or {}).get("forward_b1_ratio") or {}).get("value")
    return "" if ratio is None else f"forward, batch 1: {ratio:.2f} x fp32"


class _Watch:
    """Counts finished cells and predicts the rest; rough guesses are scaled by how they did so far in this run."""

    def __init__(self, todo: Sequence[Job], n_reused: int, estimate: Estimate, workers: int) -> None:
        self.total = len(todo) + n_reused
        self.done = n_reused
        self._left = [job.cell for job in todo]
        self._estimate, self._workers = estimate, workers
        self._expected = self._spent = 0.0

    def take(self, record: Record) -> None:
        cell = cell_of(record)
        if record["status"] == "ok" and not self._estimate.measured(cell):
            self._expected += self._estimate.cell_s(cell)
            self._spent += record["wall_s"]
        self._left.remove(cell)
        self._estimate.learn(record)
        self.done += 1

    @property
    def eta(self) -> str:
        rough = self._spent / self._expected if self._expected else 1.0
        return duration(self._estimate.run_s(self._left, self._workers, rough))


class Lines:
    """One line a finished cell, for a log file or a pipe."""

    def __init__(self, todo: Sequence[Job], n_reused: int, estimate: Estimate, workers: int, console: Console) -> None:
        self._watch = _Watch(todo, n_reused, estimate, workers)
        self._console = console

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def started(self, job: Job) -> None:
        """A line comes when the cell is finished."""

    def finished(self, record: Record) -> None:
        """[12/36] minilm/imdb/beneath/nf4-g64/0  ok  3.1 s  accuracy 81.2 %  eta 3 min"""
        self._watch.take(record)
        place = f"[{self._watch.done}/{self._watch.total}]"
        fields = [f"{place} {cell_of(record)}", record["status"], duration(record["wall_s"]), headline(record)]
        line = "  ".join([*(field for field in fields if field), f"eta {self._watch.eta}"])
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveTable:
    """A progress line, the cells that run and the results table, redrawn in place. `table` makes it from records."""

    def __init__(
        self,
        todo: Sequence[Job],
        reused: Sequence[Record],
        estimate: Estimate,
        workers: int,
        console: Console,
        table: Callable[[list[Record], int], RenderableType],
    ) -> None:
        self._watch = _Watch(todo, len(reused), estimate, workers)
        self._records = list(reused)
        self._table = table
        self._console = console
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("eta {task.fields[eta]}"),
            console=console,
            auto_refresh=False,
        )
        self._task = self._bar.add_task("", total=self._watch.total, completed=len(reused), eta=self._watch.eta)
        self._running: list[Cell] = []
        self._made = float("-inf")
        self._shown = self._made_table()
        # Once a second: drawing must not take time from what is measured.
        self._live = Live(
            get_renderable=self._view, console=console, refresh_per_second=1, vertical_overflow="crop", transient=True
        )

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, job: Job) -> None:
        """Name the cell among those that run."""
        self._running.append(job.cell)

    def finished(self, record: Record) -> None:
        """Count the cell and let the table grow, at most every other second."""
        self._watch.take(record)
        self._records.append(record)
        self._running.remove(cell_of(record))
        self._bar.update(self._task, completed=self._watch.done, eta=self._watch.eta)
        if record["status"] not in ("ok", "unsupported"):
            line = Text(f"{record['status']}  {cell_of(record)}  {headline(record)}")
            self._live.console.print(line)
        if time.monotonic() - self._made > 2:
            self._shown = self._made_table()

    def _made_table(self) -> tuple[RenderableType, ...]:
        self._made = time.monotonic()
        return (self._table(self._records, self._console.width),) if self._records else ()

    def _view(self) -> RenderableType:
        return Group(self._bar, *(Text(f"  {cell}") for cell in tuple(self._running)), *self._shown)
