"""What a run shows while it runs: how far it is, how long it still takes, and the cells that are finished."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from bench.records import Record, cell_of
from bench.run import Job
from bench.schema import METRICS, Cell

__all__ = ["Estimate", "Lines", "LiveTable", "duration", "headline"]

# Seconds a cell of a real model took on two cores, for a first guess before anything is on record.
ROUGH_S = {
    "untouched": 10.0,
    "features": 20.0,
    "prompt": 60.0,
    "full": 90.0,
    "lora": 60.0,
    "beneath": 8.0,
    "qlora": 60.0,
    "merge": 10.0,
    "speed": 8.0,
}
TINY_S = 0.5


class Estimate:
    """Expected seconds of a cell: the median on record for its model, task and order, else a rough constant."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._walls: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for record in records:
            self.learn(record)

    def learn(self, record: Record) -> None:
        """Take a finished cell into account."""
        cell = cell_of(record)
        if record["status"] == "ok" and isinstance(record.get("wall_s"), (int, float)):
            self._walls[cell.model, cell.task, cell.order].append(record["wall_s"])

    def measured(self, cell: Cell) -> bool:
        """Whether the estimate of `cell` rests on records."""
        return bool(self._walls[cell.model, cell.task, cell.order])

    def cell_s(self, cell: Cell) -> float:
        """Seconds."""
        if self.measured(cell):
            return statistics.median(self._walls[cell.model, cell.task, cell.order])
        return TINY_S if cell.model.startswith("tiny-") else ROUGH_S[cell.order]


def duration(seconds: float) -> str:
    """'3.1 s', '4 min', '1 h 20 min'."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def headline(record: Record) -> str:
    """The figure that says most about a record, or why there is none."""
    if record["status"] != "ok":
        return str(record.get("reason") or "")
    accuracy: dict[str, Any] = record.get("accuracy") or {}
    for name in ("accuracy", *(n for n, metric in METRICS.items() if metric.ranks), *METRICS):
        value = (accuracy.get(name) or {}).get("value")
        if value is not None:
            metric = METRICS[name]
            shown = f"{value:.1f}" if metric.unit == "%" else f"{value:.3g}"
            return f"{metric.heading} {shown} {metric.unit}".rstrip()
    ratio = ((record.get("speed") or {}).get("forward_b1_ratio") or {}).get("value")
    return "" if ratio is None else f"forward, batch 1: {ratio:.2f} x fp32"


class _Watch:
    """Counts finished cells and predicts the rest: the estimates, scaled by how they did so far in this run."""

    def __init__(self, todo: Sequence[Job], n_reused: int, estimate: Estimate) -> None:
        self.total = len(todo) + n_reused
        self.done = n_reused
        self._left = [job.cell for job in todo]
        self._estimate = estimate
        self._expected = self._spent = 0.0

    def take(self, record: Record) -> None:
        cell = cell_of(record)
        self._expected += self._estimate.cell_s(cell)
        self._spent += record.get("wall_s") or 0.0
        self._left.remove(cell)
        self._estimate.learn(record)
        self.done += 1

    @property
    def eta(self) -> str:
        scale = self._spent / self._expected if self._expected else 1.0
        return duration(scale * sum(self._estimate.cell_s(cell) for cell in self._left))


class Lines:
    """One line a finished cell, for a log file or a pipe."""

    def __init__(self, todo: Sequence[Job], n_reused: int, estimate: Estimate, console: Console) -> None:
        self._watch = _Watch(todo, n_reused, estimate)
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
    """A progress line over the results table, both redrawn in place. `table` makes the table from records."""

    def __init__(
        self,
        todo: Sequence[Job],
        reused: Sequence[Record],
        estimate: Estimate,
        console: Console,
        table: Callable[[list[Record], int], RenderableType],
    ) -> None:
        self._watch = _Watch(todo, len(reused), estimate)
        self._records = list(reused)
        self._table = table
        self._console = console
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("eta {task.fields[eta]}"),
            console=console,
            auto_refresh=False,
        )
        self._task = self._bar.add_task("", total=self._watch.total, completed=len(reused), eta=self._watch.eta)
        # Once a second: drawing must not take time from what is measured.
        self._live = Live(self._view(), console=console, refresh_per_second=1, vertical_overflow="crop", transient=True)
        self._drawn = 0.0

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, job: Job) -> None:
        """Name the cell that runs."""
        self._bar.update(self._task, description=str(job.cell))

    def finished(self, record: Record) -> None:
        """Count the cell and let the table grow, at most every other second."""
        self._watch.take(record)
        self._records.append(record)
        self._bar.update(self._task, completed=self._watch.done, eta=self._watch.eta)
        if record["status"] not in ("ok", "unsupported"):
            line = Text(f"{record['status']}  {cell_of(record)}  {headline(record)}")
            self._live.console.print(line)
        if time.monotonic() - self._drawn > 2:
            self._live.update(self._view())
            self._drawn = time.monotonic()

    def _view(self) -> RenderableType:
        return Group(self._bar, self._table(self._records, self._console.width)) if self._records else self._bar
