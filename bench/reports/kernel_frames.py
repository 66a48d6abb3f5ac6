"""Records of kernels and training steps as rows, and what the figures made of them are marked with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.reports.frames import dig
from bench.reports.stats import Stat, number_or_none, read_stat

__all__ = ["Cell", "Record", "caption_of", "cells_of", "mark_of"]

Record = dict[str, Any]
LEVELS = ("baseline", "layer", "op", "rival")


@dataclass(frozen=True)
class Cell:
    """A finished kernel record."""

    record: Record

    def number(self, name: str) -> float | None:
        return number_or_none(self.record.get(name))

    def stat(self, name: str) -> Stat:
        return read_stat(self.record.get(name))

    @property
    def share(self) -> Stat:
        """Of the measured copy bandwidth, with the interval of the time."""
        value, time = self.number("bandwidth_share"), self.stat("time_s")
        if value is None or not time.value or not time.low or not time.high:
            return Stat(value)
        return Stat(value, value * time.value / time.high, value * time.value / time.low)

    @property
    def subject(self) -> str:
        return str(self.record.get("subject"))

    @property
    def level(self) -> str:
        return str(self.record.get("level"))

    @property
    def operation(self) -> str:
        return str(self.record.get("operation"))

    @property
    def method(self) -> str:
        return str(self.record.get("method") or "")

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.number("n") or 0), int(self.number("k") or 0)

    @property
    def m(self) -> int:
        return int(self.number("m") or 0)


def cells_of(records: Iterable[Record]) -> list[Cell]:
    """The finished cells: by operation, larger shapes first, then level, subject and rows."""
    cells = [Cell(r) for r in records if r.get("kind") == "kernel" and r.get("status") == "ok"]
    order = {name: i for i, name in enumerate(LEVELS)}

    def key(cell: Cell) -> tuple[Any, ...]:
        n, k = cell.shape
        return cell.operation, -n * k, n, order.get(cell.level, 9), cell.subject, cell.m

    return sorted(cells, key=key)


def distinct(records: Iterable[Mapping[str, Any]], *path: str) -> list[str]:
    """The different values at `path`, as sorted text."""
    found = (dig(r, *path) for r in records)
    return sorted({str(v) for v in found if v is not None})


def mark_of(records: Sequence[Record]) -> str:
    """`CPU`, `DIRTY`, both or nothing: written across every figure."""
    cpu = any(r.get("device") == "cpu" for r in records)
    dirty = any(dig(r, "provenance", "dirty") for r in records)
    return " ".join(word for word, on in (("CPU", cpu), ("DIRTY", dirty)) if on)


def caption_of(records: Sequence[Record]) -> str:
    """Device, versions, ceilings, commit; of a CPU, that it says nothing of the kernels."""
    copies = [read_stat(dig(r, "ceilings", "copy_bytes_per_s")).value for r in records]
    products = [read_stat(dig(r, "ceilings", "product_flop_per_s")).value for r in records]
    known = [c for c in copies if c], [p for p in products if p]
    versions = [
        f"{name} {v}" for name in ("torch", "triton") for v in distinct(records, "provenance", "versions", name)
    ]
    clocks = [c for r in records if (c := number_or_none(dig(r, "clocks", "sm_hz")))]
    parts = [
        "a CPU at tiny sizes, which says nothing of the kernels" if "CPU" in mark_of(records) else "",
        ", ".join(distinct(records, "provenance", "device_name")),
        ", ".join(versions),
        f"copy {_span(known[0], 1e9)} GB/s and product {_span(known[1], 1e12)} TFLOP/s measured in the same run"
        if all(known)
        else "",
        f"SM clock {_span(clocks, 1e6)} MHz" if clocks else "",
        ", ".join(f"commit {c[:12]}" for c in distinct(records, "provenance", "commit")),
    ]
    return " · ".join(part for part in parts if part)


def _span(values: Sequence[float], unit: float) -> str:
    low, high = f"{min(values) / unit:.4g}", f"{max(values) / unit:.4g}"
    return low if low == high else f"{low} to {high}"
