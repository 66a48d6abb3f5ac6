"""Records of kernels and training steps as rows, and the targets they are held against.

A target is a figure of the record with the least it should be. `reached` needs the whole interval on its side, `open`
says that the interval contains the target. Targets hold for the devices they name only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.reports.frames import dig
from bench.reports.stats import Stat, number_or_none, read_stat

__all__ = ["TARGETS", "Cell", "Target", "caption_of", "cells_of", "mark_of", "targets_reached"]

Record = dict[str, Any]
TARGET_DEVICES = ("H100", "H200")
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


@dataclass(frozen=True)
class Target:
    """`figure` (a stat or a number) of a subject at a shape and number of rows should be at least `least`."""

    subject: str
    operation: str
    shape: tuple[int, int]
    m: int
    figure: str
    least: float
    what: str

    def judged(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """The row of the table of targets."""
        mine = [c for c in cells if (c.subject, c.operation, c.shape, c.m) == self.place]
        stat = mine[0].stat(self.figure) if mine else Stat()
        return {
            "what": self.what,
            "subject": self.subject,
            "operation": self.operation,
            "n": self.shape[0],
            "k": self.shape[1],
            "m": self.m or None,
            "least": self.least,
            "got": stat.value,
            "got_low": stat.low,
            "got_high": stat.high,
            "verdict": verdict(stat, self.least),
        }

    @property
    def place(self) -> tuple[str, str, tuple[int, int], int]:
        return self.subject, self.operation, self.shape, self.m


SQUARE, LARGE = (8192, 8192), (28672, 8192)
NF4 = "nf4-g64-dq"
TARGETS = (
    Target(NF4, "matmul", SQUARE, 1, "speedup", 2.5, "speed-up over cuBLAS bf16"),
    Target(NF4, "matmul", SQUARE, 1, "bandwidth_share", 0.45, "share of the measured copy bandwidth"),
    Target(NF4, "matmul", SQUARE, 16, "speedup", 2.2, "speed-up over cuBLAS bf16"),
    Target(NF4, "matmul", SQUARE, 64, "speedup", 1.6, "speed-up over cuBLAS bf16"),
    Target(NF4, "matmul", SQUARE, 256, "speedup", 0.95, "speed-up over cuBLAS bf16"),
    Target(NF4, "matmul", SQUARE, 1024, "speedup", 0.95, "speed-up over cuBLAS bf16"),
    Target(NF4, "matmul", SQUARE, 4096, "speedup", 0.95, "speed-up over cuBLAS bf16"),
    Target(NF4, "matmul", LARGE, 1, "speedup", 3.0, "speed-up over cuBLAS bf16"),
    Target(NF4, "matmul", LARGE, 1, "bandwidth_share", 0.70, "share of the measured copy bandwidth"),
)
DECODING, QUANTIZING = 0.80, 0.60


def verdict(stat: Stat, least: float) -> str:
    """reached, missed, open (the interval contains the target), or not measured."""
    if stat.value is None:
        return "not measured"
    low = stat.value if stat.low is None else stat.low
    high = stat.value if stat.high is None else stat.high
    return "reached" if low >= least else "missed" if high < least else "open"


def targets_reached(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row for each target; none when no cell is of a device that the targets are for."""
    devices = {str(dig(c.record, "provenance", "device_name")) for c in cells if c.record.get("device") == "cuda"}
    if not any(name in device for name in TARGET_DEVICES for device in devices):
        return []
    rows = [target.judged(cells) for target in TARGETS]
    share = "share of the measured copy bandwidth"
    for operation, least in (("dequantize", DECODING), ("quantize", QUANTIZING)):
        names = dict.fromkeys(c.subject for c in cells if c.operation == operation and c.level in ("layer", "op"))
        for name in names or (NF4,):
            rows.append(Target(name, operation, SQUARE, 0, "bandwidth_share", least, share).judged(cells))
    return (
        rows
        + compared(cells, "uniform-int4-g64", "nf4-g64", "time of nf4-g64 over that of int4", 1.0)
        + [
            row
            for rival, own in (("bitsandbytes-nf4-dq", NF4), ("bitsandbytes-nf4", "nf4-g64"))
            for row in compared(cells, own, rival, f"time of {rival} over this one's", 1.0)
        ]
    )


def compared(cells: Sequence[Cell], own: str, other: str, what: str, least: float) -> list[dict[str, Any]]:
    """Rows of the times of `other` over those of `own` in the same block, from their speed-ups over one baseline."""
    rows = []
    theirs = {(c.shape, c.m): c for c in cells if c.subject == other and c.operation == "matmul"}
    for cell in cells:
        beside = theirs.get((cell.shape, cell.m))
        if cell.subject != own or cell.operation != "matmul" or beside is None:
            continue
        ratio = quotient(cell.stat("speedup"), beside.stat("speedup"))
        row = Target(own, "matmul", cell.shape, cell.m, "speedup", least, what).judged([])
        row |= {"got": ratio.value, "got_low": ratio.low, "got_high": ratio.high, "verdict": verdict(ratio, least)}
        rows.append(row)
    return rows


def quotient(a: Stat, b: Stat) -> Stat:
    """a / b with the widest interval that the two allow."""
    if a.value is None or not b.value:
        return Stat()
    if None in (a.low, a.high, b.low, b.high) or not b.low:
        return Stat(a.value / b.value)
    return Stat(a.value / b.value, (a.low or 0.0) / (b.high or 1.0), (a.high or 0.0) / b.low)


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
