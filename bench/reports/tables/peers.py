"""`peers`: other libraries' quantizers, each beside the method of this suite at the same settings, on the same weights.

The difference is paired over the items that both were judged on; `≈` marks one whose interval contains 0.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.measure.stats import stat
from bench.reports.caption import caption
from bench.reports.frames import Row, Run, dig
from bench.reports.stats import Stat
from bench.reports.table import Column, Table, put, table
from bench.reports.tables.methods import key_of

KINDS = ("encoder", "causal")


def ours_of(row: Row) -> str:
    """The method that a peer's record says it is held against, empty for other records."""
    if not row.method.startswith("peer-"):
        return ""
    return str(dig(row.records[0], "settings", "ours") or "")


def difference(ours: Row, theirs: Row, metric: str) -> Stat:
    """Ours less theirs, the mean over the items of both with its interval; unknown without items."""
    a, b = ours.items(metric), theirs.items(metric)
    if not a or len(a) != len(b):
        return Stat()
    found = stat([x - y for x, y in zip(a, b, strict=True)], statistic="mean")
    return Stat(found["value"], found["low"], found["high"], len(a))


def fill(run: Run, row: Row, ours: Row, kind: str) -> dict[str, Any]:
    """One peer of one model and task."""
    metric = run.ranking(kind)[0]
    settings = row.table("settings")
    out: dict[str, Any] = {
        "model": row.model,
        "task": row.task,
        "peer": row.method,
        "library": f"{settings.get('package')} {settings.get('version')}",
        "ours": ours.method,
        "peer_bits_per_weight": row.number("memory", "bits_per_weight"),
        "ours_bits_per_weight": ours.number("memory", "bits_per_weight"),
        "peer_relative_error": row.number("weights", "relative_error"),
        "ours_relative_error": ours.number("weights", "relative_error"),
    }
    put(out, f"peer_{key_of(metric)}", row.metric(metric))
    put(out, f"ours_{key_of(metric)}", ours.metric(metric))
    put(out, "difference", difference(ours, row, metric))
    return out


@table("peers")
def peers(run: Run) -> list[Table]:
    """One table for each kind of model that a peer was judged on."""
    made = []
    for kind in KINDS:
        metric, shown = run.ranking(kind)
        rows = []
        judged = []
        for row in run.select("beneath", kind=kind):
            ours = run.find(row, "beneath", method=ours_of(row)) if ours_of(row) else None
            if ours is not None and ours.task == row.task:
                rows.append(fill(run, row, ours, kind))
                judged += [row, ours]
        if not rows:
            continue
        frame = pd.DataFrame(rows).sort_values(["model", "task", "peer"], kind="stable", ignore_index=True)
        unit = f" ({shown.unit})" if shown.unit else ""
        columns = (
            *(Column(n, n, text=True, keep=6) for n in ("model", "task") if frame[n].nunique() > 1),
            Column("peer", "peer", text=True, keep=9),
            Column("library", "library", text=True, keep=4),
            Column("ours", "ours", text=True, keep=9),
            Column("bits, peer", "peer_bits_per_weight", digits=4, keep=8),
            Column("bits, ours", "ours_bits_per_weight", digits=4, keep=8),
            Column("relative error, peer", "peer_relative_error", digits=4, keep=7),
            Column("relative error, ours", "ours_relative_error", digits=4, keep=7),
            Column(f"{shown.heading}, peer{unit}", f"peer_{key_of(metric)}", keep=6),
            Column(f"{shown.heading}, ours{unit}", f"ours_{key_of(metric)}", keep=6),
            Column(f"ours less peer{unit}", "difference", signed=True, keep=7),
        )
        notes = (
            "Bits are counted from the tensors that each library stores on this device, without per-tensor constants.",
            "ours less peer: mean over the same items, negative where ours is nearer to the unquantized model.",
        )
        title = f"Other libraries beside this suite, {kind} models"
        made.append(Table(f"peers-{kind}", title, columns, frame, caption(run, judged, [metric]), notes))
    return made
