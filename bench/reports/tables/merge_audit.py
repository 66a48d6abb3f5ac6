"""`merge-audit`: what it costs to merge a trained adapter, by the place that it is merged into.

The error is that of the weight that acts on x; differences and KL are to the unmerged model on the same items.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.reports.caption import caption
from bench.reports.frames import Row, Run, scale_of
from bench.reports.stats import Stat
from bench.reports.table import Column, Table, put, table
from bench.reports.tables.methods import delta_key, key_of
from bench.schema import METRICS

WAYS = {
    "original": "16-bit original weight",
    "dequantized": "dequantized weight, 16 bits",
    "requantized": "quantized again",
    "zeros": "zero points, float32",
    "zeros16": "zero points, float16",
}


def judged(run: Run, kind: str) -> tuple[str, str]:
    """(metric whose difference to the unmerged model is shown, distance to it)."""
    if kind == "encoder":
        return "accuracy", "kl_labels"
    return f"perplexity_{run.adapted}", f"kl_{run.adapted}"


def metric(row: Row, way: str, name: str) -> Stat:
    """A metric of the merged model in the unit in which it is shown."""
    return row.stat("merge_audit", way, "metrics", name).map(scale_of(name))


def fill(run: Run, row: Row, way: str, kind: str) -> dict[str, Any]:
    """One way of merging one adapter."""
    difference, distance = judged(run, kind)
    out: dict[str, Any] = {"model": row.model, "task": row.task, "method": row.method, "order": row.order}
    out |= {"way": way, "into": WAYS.get(way, way), "relative_error": row.number("merge_audit", way, "relative_error")}
    errors = [e for e in row.table("merge_audit", way, "layers").values() if isinstance(e, int | float)]
    out["worst_layer_error"] = max(errors, default=None)
    put(out, delta_key(difference), metric(row, way, difference).difference)
    put(out, key_of(distance), metric(row, way, distance))
    return out


@table("merge-audit")
def merge_audit(run: Run) -> list[Table]:
    """One table for each kind of model."""
    made = []
    for kind in ("encoder", "causal"):
        rows = [r for r in run.select("qlora", "qa-lora", kind=kind) if r.table("merge_audit")]
        rows.sort(key=lambda r: (r.model, r.task, r.number("memory", "bits_per_weight") or 0.0, r.method, r.order))
        lines = [
            fill(run, row, way, kind)
            for row in rows
            for way in WAYS
            if row.number("merge_audit", way, "relative_error") is not None
        ]
        if not lines:
            continue
        difference, distance = judged(run, kind)
        unit = " (points)" if kind == "encoder" else ""
        columns = (
            *(Column(n, n, text=True, keep=6) for n in ("model", "task") if len({getattr(r, n) for r in rows}) > 1),
            Column("method", "method", text=True, keep=9),
            Column("order", "order", text=True, keep=9),
            Column("merged into", "into", text=True, keep=9),
            Column("error of the weights", "relative_error", keep=8),
            Column("largest of a layer", "worst_layer_error", keep=3),
            Column(f"Δ {METRICS[difference].heading}{unit}", delta_key(difference), signed=True, keep=7),
            Column(f"{METRICS[distance].heading}, to the unmerged model", key_of(distance), keep=6),
        )
        title = f"Merging trained adapters, {kind} models"
        notes = ("Differences are to the unmerged model, not to LoRA on the unquantized weights.",)
        about = caption(run, rows, judged(run, kind))
        made.append(Table(f"merge-audit-{kind}", title, columns, pd.DataFrame(lines), about, notes))
    return made
