"""`bench compare A B`: two results folders joined by cell, or two cells side by side, figure by figure.

Quality and bytes are compared between any two; times only when device, processor and threads are the same, and nothing
at all under different protocols. A difference is "within" when each value lies in the 95 % interval of the other
record, else "outside"; without intervals it is neither. The intervals are those of each record alone, not paired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from rich import box
from rich.table import Table

from bench.errors import UsageError
from bench.key import changed
from bench.plan import same_place
from bench.records import Record, cell_of
from bench.show import cells_in, find_record, folders, load_folder

__all__ = ["Figure", "check_protocols", "check_times", "comparison", "figures", "only_in", "sides"]

SHOWN = 10  # names of cells that only one side has


@dataclass(frozen=True)
class Figure:
    """A value, with its 95 % interval when the record has one."""

    value: float
    low: float | None = None
    high: float | None = None

    def place(self, other: Figure) -> str:
        """Where each value lies as seen from the other's interval: "within", "outside", or "" without intervals."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return ""
        inside = self.low <= other.value <= self.high and other.low <= self.value <= other.high
        return "within" if inside else "outside"


def figures(record: Record, *, times: bool) -> dict[str, Figure]:
    """Every scalar figure of a record by dotted name. Without `times`, no figure of speed."""
    groups = ["accuracy", "weights", "memory", "training_memory"]
    out: dict[str, Figure] = {}
    for group in [*groups, *(["speed"] if times else [])]:
        skip = ("layers", "histogram", "parts_bytes", "implementation", "threads")
        out |= dict(_scalars(record.get(group), group, skip))
    return out


def _scalars(value: object, name: str, skip: tuple[str, ...]) -> Iterator[tuple[str, Figure]]:
    if isinstance(value, Mapping) and "value" in value:
        if _is_number(value["value"]):
            low, high = (value[end] if _is_number(value.get(end)) else None for end in ("low", "high"))
            yield name, Figure(value["value"], low, high)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in skip:
                yield from _scalars(inner, f"{name}.{key}", skip)
    elif _is_number(value):
        yield name, Figure(float(value))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def sides(a: str, b: str, out: Path | None) -> tuple[list[Record], list[Record]]:
    """The records of A and of B: of two folders, or of two cells. UsageError blames the one that is wrong."""
    is_folder = Path(a).is_dir(), Path(b).is_dir()
    if all(is_folder):
        return load_folder(Path(a)), load_folder(Path(b))
    if any(is_folder):
        (good, wrong, name) = ("A", "B", b) if is_folder[0] else ("B", "A", a)
        why = "it is a file: give the folder that holds it" if Path(name).is_file() else "no such folder"
        raise UsageError(f"{wrong} {name!r}: {why}. {good} is a results folder, so {wrong} must be one too")
    try:
        known = cells_in(folders(out))
    except UsageError as error:
        raise UsageError(f"--out: {error}" if out else f"A {a!r}: no such folder, and as a cell: {error}") from None
    found = []
    for side, name in (("A", a), ("B", b)):
        try:
            found.append([find_record(name, known)[0]])
        except UsageError as error:
            raise UsageError(f"{side} {name!r}: no such folder, and as a cell: {error}") from None
    return found[0], found[1]


def only_in(side: str, name: str, cells: Iterable[str], others: Container[str]) -> str:
    """'3 cells only in A (results/one):' and, a line each, their names, ten at most; empty when there are none."""
    alone = [cell for cell in cells if cell not in others]
    if not alone:
        return ""
    more = [f"and {len(alone) - SHOWN} more"] if len(alone) > SHOWN else []
    count = f"{len(alone)} cell{'s' if len(alone) > 1 else ''}"
    return "\n  ".join([f"{count} only in {side} ({name}):", *alone[:SHOWN], *more])


def check_protocols(a: Record, b: Record) -> None:
    """UsageError when two records were made under different protocols."""
    ours, theirs = ((r.get("key_parts") or {}).get("protocol") or {} for r in (a, b))
    moved = changed(ours, theirs)
    if moved:
        said = ", ".join(f"{name} {x!r} and {y!r}" for name, x, y in moved[:4])
        raise UsageError(f"{cell_of(a)} cannot be compared: the protocols differ in {said}")


def check_times(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str]) -> str:
    """Why the times of two records' provenances cannot be compared; empty when they can."""
    ours, theirs = a.get("provenance") or {}, b.get("provenance") or {}
    if same_place(ours, theirs):
        return ""
    said = [
        f"{p.get('device_name')} with {p.get('threads')} threads ({n})"
        for p, n in zip((ours, theirs), names, strict=True)
    ]
    advice = "Quality and bytes are compared; --no-times leaves it at that"
    return f"refusing to compare speed of {said[0]} with {said[1]}. {advice}"


def comparison(pairs: list[tuple[str, Record, Record]], names: tuple[str, str], *, times: bool) -> tuple[Table, str]:
    """A row for every figure that both records have and that differs, and how many do, in words."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("cell", "figure"):
        table.add_column(heading, overflow="fold")
    for heading in (*names, "delta", "delta %"):
        table.add_column(heading, justify="right")
    table.add_column("intervals")
    same, places = 0, Counter[str]()
    for cell, a, b in pairs:
        if a["status"] != b["status"]:
            table.add_row(cell, "status", a["status"], b["status"], "", "", "")
        ours, theirs = figures(a, times=times), figures(b, times=times)
        for name in (n for n in ours if n in theirs):
            x, y = ours[name].value, theirs[name].value
            if x == y:
                same += 1
                continue
            place = ours[name].place(theirs[name])
            places[place] += 1
            share = f"{100 * (y / x - 1):+.2f}" if x else ""
            table.add_row(cell, name, f"{x:.6g}", f"{y:.6g}", f"{y - x:+.4g}", share, place)
    told = ", ".join(
        f"{places[place]} {words}"
        for place, words in (
            ("within", "within the intervals of both"),
            ("outside", "outside of one"),
            ("", "without intervals"),
        )
        if places[place]
    )
    return table, f"{same} figures equal, {table.row_count} differ{f' ({told})' if told else ''}"
