"""`adapting`: what adapting buys and costs: the reference regimes on unquantized weights, and QLoRA by method.

Differences are to LoRA on the unquantized model, paired on the same test items where the record pairs them.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.reports.caption import caption
from bench.reports.frames import Row, Run
from bench.reports.stats import Stat
from bench.reports.table import Column, Table, put, table
from bench.reports.tables.methods import MB, delta_key, key_of
from bench.schema import METRICS, REFERENCES

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations")


def fill(row: Row, metrics: tuple[str, ...]) -> dict[str, Any]:
    """One row of the frame."""
    out: dict[str, Any] = {"model": row.model, "task": row.task, "order": row.order, "method": row.method}
    trained = row.number("training", "trainable_parameters")
    out["trainable_parameters"] = row.number("memory", "trainable_parameters") if trained is None else trained
    for metric in metrics:
        stat = row.metric(metric)
        put(out, key_of(metric), stat)
        put(out, delta_key(metric), Stat() if row.order == "lora" else stat.difference)
    for part in (*PARTS, "peak"):
        out[f"training_{part}_bytes"] = row.number("training_memory", f"{part}_bytes")
    out["train_s"] = row.number("training", "train_s")
    return out


def columns(rows: list[Row], perplexity: str) -> tuple[Column, ...]:
    several = [
        Column(name, name, text=True, keep=8) for name in ("model", "task") if len({getattr(r, name) for r in rows}) > 1
    ]
    return (
        *several,
        Column("regime", "order", text=True, keep=9),
        Column("method", "method", text=True, keep=9),
        Column("trainable", "trainable_parameters", digits=0, keep=6),
        Column("accuracy (%)", key_of("accuracy"), keep=8),
        Column("Δ to LoRA (points)", delta_key("accuracy"), signed=True, keep=7),
        Column("test loss (nats)", key_of("loss"), keep=1),
        Column(METRICS[perplexity].heading, key_of(perplexity), keep=8),
        Column("Δ perplexity to LoRA", delta_key(perplexity), signed=True, keep=7),
        *(Column(f"{part} (MB)", f"training_{part}_bytes", scale=MB, keep=2) for part in PARTS),
        Column("peak of a step (MB)", "training_peak_bytes", scale=MB, keep=6),
        Column("training, dense weights (s)", "train_s", keep=3),
    )


@table("adapting")
def adapting(run: Run) -> list[Table]:
    """References in their order, then QLoRA by bits per weight."""
    order = {name: i for i, name in enumerate((*REFERENCES, "qlora"))}
    rows = run.select(*order)
    rows.sort(key=lambda r: (r.model, r.task, order[r.order], r.number("memory", "bits_per_weight") or 0.0, r.method))
    if not rows:
        return []
    notes = (
        "Differences are to the LoRA row of the same model and task.",
        "Peak of a step: memory of one training step of the packed model on the largest batch of its training.",
        "Training runs on decoded weights, for speed: its seconds are not those of the packed model, and cells share "
        "the machine. A LoRA row's adapter may come from an earlier run, as `training.trained_utc` of its record says.",
    )
    metrics = ("accuracy", "loss", f"perplexity_{run.adapted}")
    frame = pd.DataFrame([fill(r, metrics) for r in rows])
    title = "Adapting: reference regimes and QLoRA"
    return [Table("adapting", title, columns(rows, metrics[-1]), frame, caption(run, rows, metrics), notes)]
