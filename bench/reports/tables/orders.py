"""`orders`: the same method quantized beneath the adapter, under QLoRA, and after merging, side by side.

Shown is the difference to LoRA on the unquantized model in the metric that judges the task.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.reports.caption import caption
from bench.reports.frames import Row, Run
from bench.reports.table import Column, Table, put, table
from bench.reports.tables.methods import delta_key, key_of
from bench.schema import METRICS

ORDERS = ("beneath", "qlora", "merge")
HEADINGS = {"beneath": "beneath", "qlora": "QLoRA", "merge": "merged"}


def judged(run: Run, kind: str) -> tuple[str, str]:
    """(metric whose difference is shown, distance to the unquantized model)."""
    if kind == "encoder":
        return "accuracy", "cosine_distance"
    return f"perplexity_{run.adapted}", f"kl_{run.adapted}"


def fill(run: Run, group: dict[str, Row], kind: str) -> dict[str, Any]:
    """One method of one model and task."""
    any_row = next(iter(group.values()))
    out: dict[str, Any] = {"model": any_row.model, "task": any_row.task, "method": any_row.method}
    out["bits_per_weight"] = any_row.number("memory", "bits_per_weight")
    difference, distance = judged(run, kind)
    for order, row in group.items():
        put(out, f"{order}_{delta_key(difference)}", row.metric(difference).difference)
        put(out, f"{order}_{key_of(distance)}", row.metric(distance))
    return out


@table("orders")
def orders(run: Run) -> list[Table]:
    """Methods that were measured in at least two orders; one table for each kind of model."""
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in run.select(*ORDERS):
        groups.setdefault((row.model, row.task, row.method), {})[row.order] = row
    made = []
    for kind in ("encoder", "causal"):
        difference, distance = judged(run, kind)
        several = {k: g for k, g in groups.items() if len(g) > 1 and run.kinds.get(k[0]) == kind}
        if not several:
            continue
        unit = " (points)" if kind == "encoder" else ""
        what = f"Δ {METRICS[difference].heading}"
        far = METRICS[distance].heading + (" (nats/token)" if kind == "causal" else "")
        columns = (
            *(
                Column(n, n, text=True, keep=6)
                for i, n in enumerate(("model", "task"))
                if len({k[i] for k in several}) > 1
            ),
            Column("method", "method", text=True, keep=9),
            Column("bits/weight", "bits_per_weight", digits=4, keep=8),
            *(Column(f"{HEADINGS[o]}: {what}{unit}", f"{o}_{delta_key(difference)}", signed=True) for o in ORDERS),
            *(Column(f"{HEADINGS[o]}: {far}", f"{o}_{key_of(distance)}", keep=3) for o in ORDERS),
        )
        ordered = sorted(several.items(), key=lambda kg: (kg[0][0], kg[0][1], _bits(kg[1]), kg[0][2]))
        rows = [row for _, group in ordered for row in group.values()]
        made.append(
            Table(
                f"orders-{kind}",
                f"Orders of adapting and quantizing, {kind} models",
                columns,
                pd.DataFrame([fill(run, group, kind) for _, group in ordered]),
                caption(run, rows, judged(run, kind)),
                ("Differences are to LoRA on the unquantized model; an order that was not run shows a dash.",),
            )
        )
    return made


def _bits(group: dict[str, Row]) -> float:
    return next(iter(group.values())).number("memory", "bits_per_weight") or 0.0
