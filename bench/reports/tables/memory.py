"""`memory`: bytes by part of every method and model, counted from what is stored, and bits per weight they make."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.reports.caption import caption
from bench.reports.frames import Row, Run
from bench.reports.table import Column, Table, table
from quant import PARTS

SHOWN = (*(p for p in PARTS if p not in ("unquantized", "constants")), "constants", "unquantized", "adapter")
FIGURES = (
    "model_bytes",
    "quantized_bytes",
    "constants_bytes",
    "n_quantized_weights",
    "bits_per_weight",
    "bits_per_weight_model",
    "entropy_bits_per_weight",
    "file_bytes",
    "file_header_bytes",
)


def fill(row: Row) -> dict[str, Any]:
    """One row of the frame; a part that the record does not name takes no bytes, parts it names are all kept."""
    out: dict[str, Any] = {"model": row.model, "method": row.method, "family": row.family, "task": row.task}
    parts = row.table("memory", "parts_bytes")
    for part in (*SHOWN, *sorted(str(p) for p in parts if p not in SHOWN)):
        value = row.number("memory", "parts_bytes", part)
        out[f"{part}_bytes"] = 0.0 if value is None and parts else value
    return out | {f"memory_{name}" if f"{name}" in out else name: row.number("memory", name) for name in FIGURES}


@table("memory")
def memory(run: Run) -> list[Table]:
    """One row for each model and method, from the first order that has bytes: the adapter is the same in all."""
    found: dict[tuple[str, str], Row] = {}
    for order in ("beneath", "qlora", "speed", "merge"):
        for row in run.select(order):
            if row.number("memory", "model_bytes") is not None:
                found.setdefault((row.model, row.method), row)
    rows = sorted(found.values(), key=lambda r: (r.model, r.number("memory", "bits_per_weight") or 0.0, r.method))
    if not rows:
        return []
    frame = pd.DataFrame([fill(r) for r in rows])
    counts = [c for c in frame.columns if c.endswith("_bytes") or c == "n_quantized_weights"]
    frame[counts] = frame[counts].astype("Float64").round().astype("Int64")
    model = (Column("model", "model", text=True, keep=8),) if frame["model"].nunique() > 1 else ()
    columns = (
        *model,
        Column("method", "method", text=True, keep=9),
        Column("bits/weight", "bits_per_weight", digits=5, keep=9),
        Column("entropy-coded bits", "entropy_bits_per_weight", digits=4, keep=3),
        *(Column(f"{p.replace('_', ' ')} (MB)", f"{p}_bytes", scale=1e-6, digits=4, keep=4) for p in SHOWN),
        Column("total (MB)", "model_bytes", scale=1e-6, digits=4, keep=8),
        Column("bits/weight, whole model", "bits_per_weight_model", digits=4, keep=5),
        Column("file (MB)", "file_bytes", scale=1e-6, digits=4, keep=2),
        Column("file header (kB)", "file_header_bytes", scale=1e-3, keep=1),
    )
    notes = (
        "The parts sum to the total; MB is 10^6 bytes. Bits per weight leave out the per-tensor constants.",
        "The file holds the quantized layers and the adapter: their stored bytes and a header.",
    )
    return [Table("memory", "Memory by part", columns, frame, caption(run, rows), notes)]
