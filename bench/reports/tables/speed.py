"""`speed`: times, and speed-ups over the fp32 model of the same run, with the implementation that ran."""

# ruff: noqa: RUF001
from __future__ import annotations

from typing import Any

import pandas as pd

from bench.reports.caption import DISTURBANCES, INTERVALS, caption
from bench.reports.frames import Row, Run, dig
from bench.reports.table import Column, Table, put, table

PATHS = ("forward_b1", "prefill", "train_step", "forward_b1_bf16", "prefill_bf16")
HEADINGS = {
    "forward_b1": "forward b1",
    "prefill": "prefill",
    "train_step": "train step",
    "forward_b1_bf16": "forward b1 in bf16",
    "prefill_bf16": "prefill in bf16",
}
ORDERS = ("speed", "beneath", "qlora")


def timed_rows(run: Run) -> list[Row]:
    """One row for each model and method: the first of `ORDERS` in which a forward pass was timed."""
    found: dict[tuple[str, str], Row] = {}
    for order in ORDERS:
        for row in run.select(order):
            if any(row.number("speed", f"{path}_{what}") is not None for path in PATHS for what in ("s", "ratio")):
                found.setdefault((row.model, row.method), row)
    return sorted(found.values(), key=lambda r: (r.model, r.number("memory", "bits_per_weight") or 0.0, r.method))


def fill(row: Row) -> dict[str, Any]:
    out: dict[str, Any] = {"model": row.model, "method": row.method, "family": row.family}
    for path in PATHS:
        put(out, f"{path}_s", row.stat("speed", f"{path}_s"))
        put(out, f"{path}_speedup", row.speedup(f"{path}_ratio"))
        put(out, f"{path}_speedup_bf16", row.speedup(f"{path}_ratio_bf16"))
        out[f"{path}_speedup_disturbed"] = row.disturbed(path) and out[f"{path}_speedup"] is not None
        out[f"{path}_speedup_bf16_disturbed"] = row.noisy and out[f"{path}_speedup_bf16"] is not None
    put(out, "noise", row.stat("speed", "noise"))
    out["noisy"] = row.noisy
    put(out, "prefill_tokens_per_s", row.stat("speed", "prefill_tokens_per_s"))
    put(out, "quantize_s", row.stat("speed", "quantize_s"))
    for name in ("implementation", "implementation_bf16"):
        layers = row.table("speed", name)
        out[name] = ", ".join(f"{engine}: {layers[engine]}" for engine in sorted(layers, key=str))
    out["device"] = str(dig(row.records[0], "speed", "device") or "")
    return out


@table("speed")
def speed(run: Run) -> list[Table]:
    """Every method that was timed, by bits per weight."""
    rows = timed_rows(run)
    if not rows:
        return []
    frame = pd.DataFrame([fill(r) for r in rows])
    columns = (
        *((Column("model", "model", text=True, keep=8),) if frame["model"].nunique() > 1 else ()),
        Column("method", "method", text=True, keep=9),
        *(Column(f"{HEADINGS[p]} (× fp32)", f"{p}_speedup", neutral=1.0, keep=8) for p in PATHS),
        *(
            Column(f"{HEADINGS[p]} (× bf16)", f"{p}_speedup_bf16", neutral=1.0, keep=6)
            for p in PATHS
            if p.endswith("bf16")
        ),
        *(Column(f"{HEADINGS[p]} (ms)", f"{p}_s", scale=1e3, keep=5) for p in PATHS),
        Column("fp32 over itself", "noise", keep=3),
        Column("prefill (tokens/s)", "prefill_tokens_per_s", keep=4),
        Column("quantize (s)", "quantize_s", keep=3),
        Column("implementation: layers", "implementation", text=True, keep=2),
        Column("in bf16", "implementation_bf16", text=True, keep=2),
    )
    busy = sum(bool(noisy) for noisy in frame["noisy"])
    notes = (
        *(
            (
                f"{busy} of {len(rows)} were timed on a busy machine, or with fp32 far from itself: all their "
                "ratios are marked †, and the CSV says `noisy`.",
            )
            * bool(busy)
        ),
        "Speed-ups are over the model in fp32 (× fp32) or in bfloat16 (× bf16) of the same run: above 1 is faster. "
        "In bf16: what is not quantized and the activations are bfloat16. Fp32 over itself: the same model timed twice "
        f"in the same rounds. {INTERVALS}. {DISTURBANCES}.",
    )
    return [Table("speed", "Speed", columns, frame, caption(run, rows), notes)]
