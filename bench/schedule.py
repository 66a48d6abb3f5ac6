"""Which cell a free worker takes next: list scheduling by longest processing time (Graham, 1969), over groups of cells.

The cells of one (model, task) share a loaded model and a trained baseline, so a group runs in order on one worker, the
longest group first. A worker that finds no group left helps another with its group, from the end, as soon as the
baseline of that end is on disk: until then the helper would only train it a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.schema import Cell

__all__ = ["ALONE", "WORKER_BYTES", "Schedule", "count_workers", "threads_of"]

ALONE = ("speed",)  # orders whose cells run with no other beside them, on all the threads
WORKER_BYTES = 3 * 10**9  # a worker with the larger model takes about 2.5 GB

Group = tuple[str, str]
Baseline = tuple[str, str, int]


def threads_of(cell: Cell, threads: int) -> int:
    """The threads that `cell` has in a run that may use `threads` of them."""
    return threads if cell.order in ALONE else 1


def count_workers(cells: Iterable[Cell], threads: int, available_bytes: int) -> int:
    """How many workers share `cells`: as many as there are threads, judged cells and memory for; 1 at least."""
    judged = sum(cell.order not in ALONE for cell in cells)
    return max(1, min(threads, judged, available_bytes // WORKER_BYTES))


def _group(cell: Cell) -> Group:
    return cell.model, cell.task


def _baseline(cell: Cell) -> Baseline:
    return cell.model, cell.task, cell.seed


class Schedule:
    """The cells that no worker has taken yet. `seconds` says how long a cell is expected to take.

    Workers are numbers. A worker that takes a cell tells with `finished` when it is done with it, however it ended.
    """

    def __init__(self, cells: Sequence[Cell], seconds: Callable[[Cell], float]) -> None:
        self._seconds = seconds
        lora_first = sorted(cells, key=lambda cell: cell.order != "lora")
        self._left: dict[Group, list[Cell]] = {}
        self._first: dict[Baseline, Cell] = {}  # the cell that leaves the baseline on disk
        for cell in lora_first:
            self._left.setdefault(_group(cell), []).append(cell)
            self._first.setdefault(_baseline(cell), cell)
        self._not_started = sorted(self._left, key=self._left_s, reverse=True)
        self._own: dict[int, Group] = {}
        self._helps: dict[int, Group] = {}
        self._ready: set[Baseline] = set()

    def take(self, worker: int) -> Cell | None:
        """The next cell of `worker`; None when there is none for it now, which the end of another cell may change."""
        own = self._own.get(worker)
        if (own is None or not self._left[own]) and self._not_started:
            own = self._own[worker] = self._not_started.pop(0)
        if own is not None and self._left[own]:
            return self._left[own].pop(0)
        return self._help(worker)

    def finished(self, cell: Cell) -> None:
        """`cell` has ended."""
        if self._first[_baseline(cell)] == cell:
            self._ready.add(_baseline(cell))

    def _help(self, worker: int) -> Cell | None:
        """From the group that it helped before, whose model it has loaded, else from the one with most to do."""
        helped = self._helps.get(worker)
        for group in sorted(self._left, key=lambda g: (g == helped, self._left_s(g)), reverse=True):
            for cell in reversed(self._left[group]):
                if _baseline(cell) in self._ready:
                    self._left[group].remove(cell)
                    self._helps[worker] = group
                    return cell
        return None

    def _left_s(self, group: Group) -> float:
        return sum(self._seconds(cell) for cell in self._left[group])
