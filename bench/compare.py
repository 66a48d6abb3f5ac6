"""`bench compare A B`: two results folders joined by cell, or two cells side by side, with what changed.

Quality and bytes are compared between any two; times only when device, processor and threads are the same, and nothing
at all under different protocols.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

from bench.errors import UsageError
from bench.key import changed
from bench.plan import same_place
from bench.records import Record, cell_of

__all__ = ["check_protocols", "check_times", "comparison", "figures"]


def figures(record: Record, *, times: bool) -> dict[str, float]:
    """Every scalar figure of a record by dotted name; a stat is its value. Without `times`, no figure of speed."""
    groups = ["accuracy", "weights", "memory", "training_memory"]
    out: dict[str, float] = {}
    for group in [*groups, *(["speed"] if times else [])]:
        skip = ("layers", "histogram", "parts_bytes", "implementation", "threads")
        out |= dict(_scalars(record.get(group), group, skip))
    return out


def _scalars(value: object, name: str, skip: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        yield name, float(value)
    elif isinstance(value, Mapping):
        if "value" in value:
            yield from _scalars(value["value"], name, skip)
            return
        for key, inner in value.items():
            if key not in skip:
                yield from _scalars(inner, f"{name}.{key}", skip)


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


def comparison(pairs: list[tuple[str, Record, Record]], names: tuple[str, str], *, times: bool) -> tuple[Table, int]:
    """A row for every figure that both records have and that differs, and the number of figures that are equal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("cell", "figure"):
        table.add_column(heading, overflow="fold")
    for heading in (*names, "delta", "delta %"):
        table.add_column(heading, justify="right")
    same = 0
    for cell, a, b in pairs:
        if a["status"] != b["status"]:
            table.add_row(cell, "status", a["status"], b["status"], "", "")
        ours, theirs = figures(a, times=times), figures(b, times=times)
        for name in (n for n in ours if n in theirs):
            x, y = ours[name], theirs[name]
            if x == y:
                same += 1
                continue
            table.add_row(cell, name, f"{x:.6g}", f"{y:.6g}", f"{y - x:+.4g}", f"{100 * (y / x - 1):+.2f}" if x else "")
    return table, same
