"""`training-memory`: bytes at the peak of training, by what they are for; the parts sum to the peak."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.reports.caption import caption
from bench.reports.frames import Row, Run
from bench.reports.table import Column, Table, table

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations")
TRAINED = ("features", "prompt", "full", "lora", "qlora", "speed")


def trained_rows(run: Run) -> list[Row]:
    """Rows with a measured peak, by model, regime and falling peak; `speed` rows only for methods without `qlora`."""
    rows = [r for r in run.select(*TRAINED) if r.number("training_memory", "peak_bytes") is not None]
    judged = {(r.model, r.method) for r in rows if r.order == "qlora"}
    rows = [r for r in rows if r.order != "speed" or (r.model, r.method) not in judged]
    return sorted(
        rows,
        key=lambda r: (
            r.model,
            r.task,
            TRAINED.index(r.order),
            -(r.number("training_memory", "peak_bytes") or 0.0),
            r.method,
        ),
    )


def fill(row: Row) -> dict[str, Any]:
    order = "lora on method" if row.order == "speed" else row.order
    out: dict[str, Any] = {"model": row.model, "task": row.task, "order": order, "method": row.method}
    for part in (*PARTS, "peak"):
        out[f"{part}_bytes"] = row.number("training_memory", f"{part}_bytes")
    out["peak_rss_bytes"] = row.number("training_memory", "peak_rss_bytes")
    return out | {name: row.number("training_memory", name) for name in ("steps", "batch", "tokens")}


@table("training-memory")
def training_memory(run: Run) -> list[Table]:
    """Every regime and method that was trained."""
    rows = trained_rows(run)
    if not rows:
        return []
    frame = pd.DataFrame([fill(r) for r in rows])
    columns = (
        *(Column(n, n, text=True, keep=7) for n in ("model", "task") if frame[n].nunique() > 1),
        Column("regime", "order", text=True, keep=9),
        Column("method", "method", text=True, keep=9),
        *(Column(f"{p} (MB)", f"{p}_bytes", scale=1e-6, digits=4, keep=5) for p in PARTS),
        Column("peak (MB)", "peak_bytes", scale=1e-6, digits=4, keep=8),
        Column("peak RSS (MB)", "peak_rss_bytes", scale=1e-6, digits=4, keep=3),
        Column("batch", "batch", digits=0, keep=2),
        Column("tokens", "tokens", digits=0, keep=1),
    )
    notes = (
        "The five parts sum to the peak. The resident set also holds the interpreter and its libraries.",
        "Batch is in texts, tokens are those of the whole batch with its padding. `lora on method`: one step of a "
        "fresh adapter on the quantized model, of the smaller batch of the timed cells.",
    )
    return [Table("training-memory", "Training memory at the peak", columns, frame, caption(run, rows), notes)]
