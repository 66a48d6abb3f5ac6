"""Tables of the kernel benchmark: targets, speed-ups by rows, every cell, training steps, routes, what is missing."""

# ruff: noqa: RUF001
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.reports.frames import dig
from bench.reports.kernel_frames import Cell, Record, caption_of, cells_of
from bench.reports.kernel_targets import targets_of
from bench.reports.stats import read_stat
from bench.reports.table import Column, Table, put

__all__ = ["kernel_tables"]

PLACE = (
    Column("operation", "operation", text=True, keep=9),
    Column("n", "n", digits=0, keep=9),
    Column("k", "k", digits=0, keep=9),
    Column("m", "m", digits=0, keep=9),
)
WHO = (Column("subject", "subject", text=True, keep=9), Column("level", "level", text=True, keep=6))
HOW = (
    "Time: the kernels alone, by CUDA graphs, caches cold; eager: as Python issues them, the host's share in dispatch. "
    "A speed-up is over the dense bfloat16 layer (of decoding and quantizing: over a copy of the dense weight) in the "
    "same rounds: above 1 is faster. Bandwidth counts what must at least be moved."
)


def kernel_tables(records: Sequence[Record]) -> list[Table]:
    """Every table that has rows."""
    cells = cells_of(records)
    made = [targets(records), by_rows(cells), everything(cells), training(records), routes(records)]
    made += [stages(records), left_out(records)]
    return [t for t in made if t is not None]


def everything(cells: Sequence[Cell]) -> Table | None:
    """A row for each cell."""
    if not cells:
        return None
    rows = []
    for cell in cells:
        row: dict[str, Any] = {name: cell.record.get(name) for name in ("operation", "layer", "n", "k", "m", "subject")}
        row |= {name: cell.record.get(name) for name in ("level", "method", "implementation", "time_kind", "device")}
        for name in ("time_s", "graph_s", "eager_s", "dispatch_s", "speedup", "speedup_eager"):
            put(row, name, cell.stat(name))
        for name in ("bandwidth_bytes_per_s", "bandwidth_share", "flop_per_s", "flop_share", "relative_error"):
            row[name] = cell.number(name)
        row |= {"moved_bytes": cell.record.get("moved_bytes"), "copies": cell.record.get("copies")}
        rows.append(row)
    columns = (
        *PLACE,
        *WHO,
        Column("path", "implementation", text=True, keep=3),
        Column("time (µs)", "time_s", scale=1e6, keep=9),
        Column("speed-up (×)", "speedup", neutral=1.0, keep=9),
        Column("eager (µs)", "eager_s", scale=1e6, keep=5),
        Column("eager speed-up (×)", "speedup_eager", neutral=1.0, keep=4),
        Column("dispatch (µs)", "dispatch_s", scale=1e6, keep=4),
        Column("GB/s", "bandwidth_bytes_per_s", scale=1e-9, keep=8),
        Column("of copy (%)", "bandwidth_share", scale=100, keep=8),
        Column("TFLOP/s", "flop_per_s", scale=1e-12, keep=7),
        Column("of product (%)", "flop_share", scale=100, keep=6),
        Column("relative error", "relative_error", digits=2, keep=3),
    )
    frame = pd.DataFrame(rows)
    return Table("kernels", "Kernels", columns, frame, caption_of([c.record for c in cells]), (HOW,))


def by_rows(cells: Sequence[Cell]) -> Table | None:
    """Speed-ups of products: a row for each shape and subject, a column for each number of rows."""
    products = [c for c in cells if c.operation == "matmul" and c.level != "baseline"]
    if not products:
        return None
    numbers = sorted({c.m for c in products})
    rows: dict[tuple[int, int, str], dict[str, Any]] = {}
    for cell in products:
        n, k = cell.shape
        row = rows.setdefault((n, k, cell.subject), {"n": n, "k": k, "subject": cell.subject, "level": cell.level})
        put(row, f"m{cell.m}_speedup", cell.stat("speedup"))
    columns = (*PLACE[1:3], *WHO, *(Column(f"m = {m}", f"m{m}_speedup", neutral=1.0, keep=8) for m in numbers))
    caption = f"{caption_of([c.record for c in products])}. Speed-up (×) over the dense bfloat16 layer."
    frame = pd.DataFrame(list(rows.values()))
    return Table("kernel-speedups", "Speed-up of products by the number of rows", columns, frame, caption)


def targets(records: Sequence[Record]) -> Table:
    """Targets beside what was reached."""
    columns = (
        *PLACE,
        WHO[0],
        Column("figure", "what", text=True, keep=9),
        Column("target", "least", keep=9),
        Column("measured", "got", keep=9),
        Column("verdict", "verdict", text=True, keep=9),
        Column("reason", "reason", text=True, keep=5),
    )
    note = "reached: the whole 95 % interval is on the target's side."
    frame = pd.DataFrame(targets_of(records))
    return Table("kernel-targets", "Targets of the kernels", columns, frame, caption_of(records), (note,))


def routes(records: Sequence[Record]) -> Table | None:
    """(Time of the product with the packed weight) / (time of decoding it first), by rows of x."""
    found = [r for r in records if r.get("kind") == "route" and r.get("status") == "ok"]
    if not found:
        return None
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for r in found:
        place = {name: r.get(name) for name in ("n", "k", "method")}
        row = rows.setdefault(tuple(place.values()), place)
        put(row, f"m{r.get('m')}_ratio", read_stat(r.get("product_over_dense")))
    numbers = sorted({int(r["m"]) for r in found})
    by_m = (Column(f"m = {m}", f"m{m}_ratio", neutral=1.0, keep=8) for m in numbers)
    columns = (*PLACE[1:3], Column("method", "method", text=True, keep=9), *by_m)
    caption = f"{caption_of(found)}. Time of the product with the packed weight over that of decoding it first."
    return Table("kernel-routes", "Routes of products", columns, pd.DataFrame(list(rows.values())), caption)


def stages(records: Sequence[Record]) -> Table | None:
    """Tests, configurations, bounds of the routes, first calls: a line each."""
    rows: list[dict[str, Any]] = []
    for r in (r for r in records if r.get("kind") in ("tests", "bounds", "first_call")):
        if r["kind"] == "tests":
            told = ", ".join(f"{r.get(name)} {name}" for name in ("passed", "failed", "skipped", "unreached"))
        elif r["kind"] == "bounds":
            sizes = r.get("bounds") or {}
            told = "; ".join(f"{size}: decoded first from {dig(b, 'dense')} rows on" for size, b in sizes.items())
        else:
            spent = read_stat(r.get("first_call_s")).value
            told = "–" if spent is None else f"m = {r.get('m')}: {spent:.2g} s by {r.get('implementation')}"
        rows.append({"stage": str(r["kind"]).replace("_", " "), "result": told, "device": r.get("device")})
    tuned = [r for r in records if r.get("kind") == "tuned" and r.get("status") == "ok"]
    if tuned:
        counted = f"{len(tuned)} entries of the table of configurations"
        rows.append({"stage": "tuning", "result": counted, "device": tuned[0].get("device")})
    if not rows:
        return None
    columns = tuple(Column(name, name, text=True, keep=9) for name in ("stage", "result"))
    return Table("gpu-stages", "Tests, configurations and routes", columns, pd.DataFrame(rows), caption_of(records))


def training(records: Sequence[Record]) -> Table | None:
    """Training steps: time, speed-up over LoRA on bfloat16, memory by what it is for."""
    steps = [r for r in records if r.get("kind") == "training" and r.get("status") == "ok"]
    if not steps:
        return None
    parts = ("peak", "weights", "adapter", "gradients", "optimizer", "activations", "cuda_peak")
    rows = []
    for r in steps:
        row: dict[str, Any] = {name: dig(r, "sizes", name) for name in ("name", "layers", "batch", "tokens", "rank")}
        row |= {"method": r.get("method"), "device": r.get("device")}
        for name in ("step_s", "speedup", "tokens_per_s"):
            put(row, name, read_stat(r.get(name)))
        rows.append(row | {f"{p}_bytes": dig(r, "training_memory", f"{p}_bytes") for p in parts})
    columns = (
        Column("model", "name", text=True, keep=9),
        *(Column(name, name, digits=0, keep=9) for name in ("layers", "tokens")),
        Column("method", "method", text=True, keep=9),
        Column("step (ms)", "step_s", scale=1e3, keep=9),
        Column("× bf16 LoRA", "speedup", neutral=1.0, keep=9),
        Column("tokens/s", "tokens_per_s", keep=6),
        *(Column(f"{p.replace('_', ' ')} (GB)", f"{p}_bytes", scale=1e-9, keep=7) for p in parts),
    )
    caption = f"{caption_of(steps)}. {steps[0].get('holds')}."
    return Table("training-steps", "Training step: time and memory", columns, pd.DataFrame(rows), caption)


def left_out(records: Sequence[Record]) -> Table | None:
    """What was not timed, and why."""
    rows = [
        {
            "subject": r.get("subject") or r.get("method") or r.get("what") or r.get("kind"),
            "where": where(r),
            "status": r["status"],
            "reason": r["reason"],
        }
        for r in records
        if r.get("kind") != "run" and r.get("status") != "ok"
    ]
    for record in (r for r in records if r.get("kind") == "run"):
        late = [str(block) for block in record.get("out_of_time") or ()]
        reason = "the time budget ended before it"
        rows += [{"subject": "all", "where": block, "status": "skipped", "reason": reason} for block in late]
    if not rows:
        return None
    columns = tuple(Column(name, name, text=True, keep=9) for name in ("subject", "where", "status", "reason"))
    return Table("kernels-left-out", "Not timed", columns, pd.DataFrame(rows), caption_of(records))


def where(record: Record) -> str:
    """The block of a record, or that it is all of them."""
    if record.get("kind") == "training":
        return f"{dig(record, 'sizes', 'layers')} layers, {dig(record, 'sizes', 'tokens')} tokens"
    if record.get("operation") is None:
        return "everywhere" if record.get("kind") == "skipped" else str(record.get("kind"))
    rows = f" m={record['m']}" if record.get("m") else ""
    return f"{record['operation']} {record['n']}x{record['k']}{rows}"
