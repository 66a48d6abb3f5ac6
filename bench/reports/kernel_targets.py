"""The targets of the kernels beside what was measured: reached, not reached or not measured, with the reason.

A target is reached when the whole 95 % interval is on its side. Targets are for H100 and H200, bfloat16, cold caches,
against the vendor's dense product in the same rounds. That one format is not slower than another, and that it is
faster than another library, must hold at every number of rows: the worst is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.reports.frames import dig
from bench.reports.kernel_frames import Cell, Record, cells_of
from bench.reports.stats import Stat, read_stat

__all__ = ["DEVICES", "TARGETS", "Target", "targets_of"]

DEVICES = ("H100", "H200")
NF4 = "nf4-g64-dq"
SQUARE, LARGE = (8192, 8192), (28672, 8192)
SPEEDUP, SHARE = "speed-up over cuBLAS bf16", "share of the measured copy bandwidth"
Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """`what` of a subject at a shape and number of rows (0: there are none) should be at least `least`."""

    subject: str
    operation: str
    shape: tuple[int, int]
    m: int
    what: str
    least: float

    def judged(self, cells: Sequence[Cell], records: Sequence[Record]) -> Row:
        """The row of the table."""
        place = self.subject, self.operation, self.shape, self.m
        mine = [c for c in cells if (c.subject, c.operation, c.shape, c.m) == place]
        got = (mine[0].stat("speedup") if self.what == SPEEDUP else mine[0].share) if mine else Stat()
        reason = "" if got.value is not None else why_not(records, self)
        return row(self, got, verdict(got, self.least), reason)


TARGETS = (
    Target(NF4, "matmul", SQUARE, 1, SPEEDUP, 2.5),
    Target(NF4, "matmul", SQUARE, 1, SHARE, 0.45),
    Target(NF4, "matmul", SQUARE, 16, SPEEDUP, 2.2),
    Target(NF4, "matmul", SQUARE, 64, SPEEDUP, 1.6),
    *(Target(NF4, "matmul", SQUARE, m, SPEEDUP, 0.95) for m in (256, 1024, 4096)),
    Target(NF4, "matmul", LARGE, 1, SPEEDUP, 3.0),
    Target(NF4, "matmul", LARGE, 1, SHARE, 0.70),
    *(Target(f"{family}_dequantize", "dequantize", SQUARE, 0, SHARE, 0.80) for family in ("codebook", "affine")),
    *(Target(f"{family}_quantize", "quantize", SQUARE, 0, SHARE, 0.60) for family in ("codebook", "affine")),
)
NOT_SLOWER = ("uniform-int4-g64", "nf4-g64")  # each beside what it must not be slower than
RIVALS = ((NF4, "bitsandbytes-nf4-dq"), ("nf4-g64", "bitsandbytes-nf4"))
FIRST_CALL_S = 1.0


def targets_of(records: Sequence[Record]) -> list[Row]:
    """A row for each target, whatever was measured."""
    there = [r for r in records if any(name in str(dig(r, "provenance", "device_name")) for name in DEVICES)]
    cells = cells_of(there)
    rows = [target.judged(cells, there) for target in TARGETS]
    rows += worst(cells, there, *NOT_SLOWER, lambda ratio: verdict_same(ratio))
    for own, rival in RIVALS:
        rows += worst(cells, there, own, rival, lambda ratio: verdict(ratio, 1.0))
    return [*rows, *first_calls(there)]


def verdict(got: Stat, least: float) -> str:
    """reached, not reached, or not measured, and whether the interval leaves it open."""
    if got.value is None:
        return "not measured"
    low = got.value if got.low is None else got.low
    high = got.value if got.high is None else got.high
    if low >= least:
        return "reached"
    return "not reached" if high < least else "not reached: the interval contains the target"


def verdict_same(ratio: Stat) -> str:
    """Not slower: reached unless the whole interval is below 1."""
    if ratio.value is None:
        return "not measured"
    return "not reached" if (ratio.value if ratio.high is None else ratio.high) < 1 else "reached"


def worst(
    cells: Sequence[Cell], records: Sequence[Record], own: str, other: str, judge: Callable[[Stat], str]
) -> list[Row]:
    """A row a shape: time of `other` over that of `own` in the same block, at the number of rows where it is least."""
    theirs = {(c.shape, c.m): c for c in cells if c.subject == other and c.operation == "matmul"}
    what = f"time of {other} over this one's, at the worst number of rows"
    shapes: dict[tuple[int, int], list[tuple[int, Stat]]] = {}
    for cell in cells:
        beside = theirs.get((cell.shape, cell.m))
        if cell.subject == own and cell.operation == "matmul" and beside is not None:
            ratio = quotient(cell.stat("speedup"), beside.stat("speedup"))
            if ratio.value is not None:
                shapes.setdefault(cell.shape, []).append((cell.m, ratio))
    rows = []
    for shape, ratios in shapes.items():
        m, ratio = min(ratios, key=lambda pair: pair[1].value or 0.0)
        target = Target(own, "matmul", shape, m, what, 1.0)
        rows.append(row(target, ratio, judge(ratio), f"of {len(ratios)} numbers of rows"))
    absent = Target(own, "matmul", SQUARE, 0, what, 1.0)
    return rows or [row(absent, Stat(), "not measured", why_not(records, Target(other, "matmul", SQUARE, 0, "", 1.0)))]


def first_calls(records: Sequence[Record]) -> list[Row]:
    """The seconds of the first call with a table of configurations."""
    found = [r for r in records if r.get("kind") == "first_call" and r.get("status") == "ok"]
    what = "seconds of the first call with a table, at most"
    if not found:
        return [
            row(Target(NF4, "matmul", (4096, 4096), 0, what, FIRST_CALL_S), Stat(), "not measured", missing(records))
        ]
    rows = []
    for record in found:
        got = read_stat(record.get("first_call_s"))
        place = int(record.get("n") or 0), int(record.get("k") or 0)
        target = Target(str(record.get("method")), "matmul", place, int(record.get("m") or 0), what, FIRST_CALL_S)
        rows.append(row(target, got, "reached" if (got.value or 9) <= FIRST_CALL_S else "not reached", "one call"))
    return rows


def quotient(a: Stat, b: Stat) -> Stat:
    """a / b with the widest interval that the two allow."""
    if a.value is None or not b.value:
        return Stat()
    if a.low is None or a.high is None or not b.low or not b.high:
        return Stat(a.value / b.value)
    return Stat(a.value / b.value, a.low / b.high, a.high / b.low)


def row(target: Target, got: Stat, judged: str, reason: str) -> Row:
    """A row of the table."""
    return {
        "what": target.what,
        "subject": target.subject,
        "operation": target.operation,
        "n": target.shape[0],
        "k": target.shape[1],
        "m": target.m or None,
        "least": target.least,
        "got": got.value,
        "got_low": got.low,
        "got_high": got.high,
        "verdict": judged,
        "reason": reason,
    }


def missing(records: Iterable[Record]) -> str:
    """Why there is nothing at all."""
    return "no record of it" if list(records) else f"no record of an {' or '.join(DEVICES)}"


def why_not(records: Sequence[Record], target: Target) -> str:
    """Why a figure is not there: the reason of the record that should have held it."""
    for record in records:
        if record.get("subject") != target.subject or record.get("status") == "ok":
            continue
        here = (record.get("n"), record.get("k"), record.get("m") or 0)
        if record.get("kind") == "skipped" or here == (*target.shape, target.m):
            return str(record.get("reason"))
    return missing(records)
