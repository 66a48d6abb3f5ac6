"""How long cells will take: as long as they took before, else as cells like them did, else a rough guess.

The seconds of a cell do not hang on its key as its figures do, so records count whatever settings, sources or machine
they were made with; the newest of a cell is the one that tells.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable

from bench.records import Record, cell_of
from bench.schedule import ALONE
from bench.schema import Cell

__all__ = ["Estimate", "duration"]

# Seconds a cell takes on one thread (speed: on two), for a first guess before anything is on record.
ROUGH_S = {
    "smollm2": {
        "untouched": 7.0,
        "features": 35.0,
        "prompt": 50.0,
        "full": 60.0,
        "lora": 45.0,
        "beneath": 9.0,
        "qlora": 50.0,
        "merge": 10.0,
        "speed": 10.0,
    },
    "minilm": {
        "untouched": 12.0,
        "features": 15.0,
        "prompt": 40.0,
        "full": 45.0,
        "lora": 30.0,
        "beneath": 5.0,
        "qlora": 28.0,
        "merge": 5.0,
        "speed": 2.5,
    },
}
TINY_S, TINY_SPEED_S = 0.4, 0.8


def _rough_s(cell: Cell) -> float:
    """A model that is not known is taken for the slower one."""
    if cell.model.startswith("tiny-"):
        return TINY_SPEED_S if cell.order == "speed" else TINY_S
    seconds = ROUGH_S.get(cell.model, ROUGH_S["smollm2"])
    return seconds.get(cell.order, seconds["qlora"])  # the other orders train a new adapter on a quantized base too


class Estimate:
    """Expected seconds of a cell.

    They are those of its own newest ok record, else the median of the cells of its model, task and order, else a
    constant.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._own: dict[Cell, tuple[str, float]] = {}  # when it started, and seconds
        self._like: dict[tuple[str, str, str], set[Cell]] = defaultdict(set)
        for record in records:
            self.learn(record)

    def learn(self, record: Record) -> None:
        """Take a finished cell into account, in any order of time."""
        cell = cell_of(record)
        if record["status"] != "ok" or not isinstance(record.get("wall_s"), (int, float)):
            return
        started = str(record.get("started_utc") or "")
        if cell not in self._own or started >= self._own[cell][0]:
            self._own[cell] = started, float(record["wall_s"])
        self._like[_group(cell)].add(cell)

    def measured(self, cell: Cell) -> bool:
        """Whether the estimate of `cell` rests on records."""
        return _group(cell) in self._like

    def cell_s(self, cell: Cell) -> float:
        """Seconds."""
        if cell in self._own:
            return self._own[cell][1]
        if self.measured(cell):
            return statistics.median(self._own[like][1] for like in self._like[_group(cell)])
        return _rough_s(cell)

    def run_s(self, cells: Iterable[Cell], workers: int, rough: float = 1.0) -> float:
        """Seconds that `cells` take when `workers` share those that do not run alone; a rough guess times `rough`."""
        beside: list[float] = [0.0]
        alone = 0.0
        for cell in cells:
            seconds = self.cell_s(cell) * (1.0 if self.measured(cell) else rough)
            if cell.order in ALONE:
                alone += seconds
            else:
                beside.append(seconds)
        return max(sum(beside) / workers, *beside) + alone

    def said(self, cells: Iterable[Cell], workers: int) -> str:
        """'about 4 min with 2 workers (an estimate: ...)', and on how many records of which kind it rests."""
        those = list(cells)
        basis = Counter("own" if c in self._own else "like" if self.measured(c) else "none" for c in those)
        kinds = {
            "own": "by the newest record of the same cell",
            "like": "without one by others of the same model, task and order",
            "none": "without any by a rough guess",
        }
        told = ", ".join(f"{basis[kind]} {words}" for kind, words in kinds.items() if basis[kind])
        who = f"{workers} worker{'s' if workers > 1 else ''}"
        return f"about {duration(self.run_s(those, workers))} with {who} (an estimate: {told})"


def _group(cell: Cell) -> tuple[str, str, str]:
    return cell.model, cell.task, cell.order


def duration(seconds: float) -> str:
    """'3.1 s', '4 min', '1 h 20 min'."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
