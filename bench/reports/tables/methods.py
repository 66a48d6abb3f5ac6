"""The main tables, `methods-encoder` and `methods-causal`: every method beneath the adapter, ranked by its distance to
the unquantized model.

A row that is not told apart from the first of its rank shares it, marked `=` (see `bench.reports.ranks`). Times and
training memory come from the row itself or, where quality and speed were measured in different cells, from the `speed`
or `qlora` cell of the method on the same task.
"""

# ruff: noqa: RUF001
from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pandas as pd

from bench.reports.caption import DISTURBANCES, caption
from bench.reports.frames import Row, Run, metric_kind, unit_of
from bench.reports.ranks import ranks
from bench.reports.table import Column, Table, put, table
from bench.schema import METRICS

STATISTICS = {"second_moment": "inputs", "magnitude": "inputs", "fisher": "gradients"}
WEIGHT_ERROR = (
    "SQNR and gap are of the weights alone. Methods that trade weight error for output error (error feedback: GPTQ, "
    "SparseGPT, LNQ; scaled or weighted: AWQ, SqueezeLLM, searches over inputs; Wanda) do not minimize it and are not "
    "to be judged by it"
)
SPEEDS = ("forward_b1", "prefill", "train_step", "forward_b1_bf16", "prefill_bf16")
MB = 1e-6


def key_of(metric: str) -> str:
    """The metric's column in the frame, its unit in the name."""
    unit = unit_of(metric)
    return f"{metric}_{unit}" if unit else metric


def delta_key(metric: str) -> str:
    unit = unit_of(metric).replace("percent", "points")
    return f"{metric}_delta_{unit}" if unit else f"{metric}_delta"


def fill(run: Run, row: Row, kind: str) -> dict[str, Any]:
    """One row of the frame: raw numbers in the units that the keys name."""
    out: dict[str, Any] = {"rank": "", "model": row.model, "task": row.task, "method": row.method, "family": row.family}
    held = run.first(row, ("memory", "bits_per_weight"), "speed", "qlora")
    out["bits_per_weight"] = held.number("memory", "bits_per_weight")
    out["bits_per_weight_model"] = held.number("memory", "bits_per_weight_model")
    out["model_bytes"] = held.number("memory", "model_bytes")
    out["calibration"] = calibrated(row.method)
    for name in (m for m in METRICS if metric_kind(m) == kind):
        stat = row.metric(name)
        put(out, key_of(name), stat)
        put(out, delta_key(name), stat.difference)
        out[f"{name}_p_value"] = stat.p_value
        if name.startswith("perplexity"):
            put(out, f"{name}_ratio", row.ratio(name))
    out["sqnr_db"], out["gap_db"] = row.number("weights", "sqnr_db"), row.number("weights", "gap_db")
    for name in SPEEDS:
        timed = run.first(row, ("speed", f"{name}_ratio"), "speed", "qlora")
        put(out, f"{name}_speedup", timed.speedup(f"{name}_ratio"))
        out[f"{name}_speedup_disturbed"] = timed.disturbed(name) and out[f"{name}_speedup"] is not None
    path = ("training_memory", "peak_bytes")  # of one kind of cell for all methods of a model: their batches differ
    measured = any(r.model == row.model and r.number(*path) is not None for r in run.select("speed"))
    out["training_peak_bytes"] = run.first(row, path, "speed" if measured else "qlora").number(*path)
    return out


@cache
def calibrated(method: str) -> str:
    """What a registered method must know of the model beside its weights; unknown for any other name."""
    from quant import METHODS  # loads torch

    quantizer = METHODS.get(method)
    if quantizer is None:
        return ""
    return ", ".join(sorted({STATISTICS[need] for need in quantizer.needs})) or "none"


def columns(run: Run, kind: str, rows: Sequence[Row]) -> tuple[Column, ...]:
    """Model and task are columns only when there are several."""
    ranking, _ = run.ranking(kind)
    several = [
        Column(name, name, text=True, keep=7) for name in ("model", "task") if len({getattr(r, name) for r in rows}) > 1
    ]
    perplexity, others = f"perplexity_{run.text}", [f"perplexity_{t}" for t in run.texts if t != run.text]
    quality = {
        "encoder": (
            Column("Δ accuracy (points)", delta_key("accuracy"), signed=True, keep=8),
            Column("McNemar p", "accuracy_p_value", digits=2, keep=3),
        ),
        "causal": (
            *(Column(shown_as(run, f"kl_{t}"), key_of(f"kl_{t}"), keep=8) for t in run.texts if t != run.text),
            Column(METRICS[perplexity].heading, key_of(perplexity), keep=2),
            Column(f"Δ {METRICS[perplexity].heading}", delta_key(perplexity), signed=True, keep=7),
            Column(METRICS[perplexity].heading.replace(",", " ratio,"), f"{perplexity}_ratio", neutral=1.0, keep=3),
            *(Column(f"Δ {METRICS[p].heading}", delta_key(p), signed=True, keep=4) for p in others),
            Column("top-1 agreement (%)", key_of(f"top1_{run.text}"), keep=6),
        ),
    }
    agreement = (Column("label agreement (%)", key_of("label_agreement"), keep=4),) if kind == "encoder" else ()
    return (
        Column("rank", "rank", text=True, keep=6),
        *several,
        Column("method", "method", text=True, keep=9),
        Column("family", "family", text=True, keep=3),
        Column("calibration", "calibration", text=True, keep=5),
        Column("bits/weight", "bits_per_weight", digits=4, keep=9),
        Column("bits/weight, whole model", "bits_per_weight_model", digits=4, keep=5),
        Column("model (MB)", "model_bytes", scale=MB, keep=5),
        Column(shown_as(run, ranking), key_of(ranking), keep=9),
        *quality[kind],
        *agreement,
        Column("SQNR (dB)", "sqnr_db", keep=4),
        Column("gap (dB)", "gap_db", keep=2),
        Column("forward b1 (× fp32)", "forward_b1_speedup", neutral=1.0, keep=7),
        Column("prefill (× fp32)", "prefill_speedup", neutral=1.0, keep=4),
        Column("forward b1 in bf16 (× fp32)", "forward_b1_bf16_speedup", neutral=1.0, keep=6),
        Column("prefill in bf16 (× fp32)", "prefill_bf16_speedup", neutral=1.0, keep=2),
        Column("train step (× fp32)", "train_step_speedup", neutral=1.0, keep=2),
        Column("peak of a step (MB)", "training_peak_bytes", scale=MB, keep=3),
    )


def shown_as(run: Run, metric: str) -> str:
    """`KL, Wikipedia, out of domain (nats/token)`."""
    known = METRICS[metric]
    return known.heading + run.domain(metric) + (f" ({known.unit})" if known.unit else "")


def said(run: Run, rows: Sequence[Row], frame: pd.DataFrame, names: Sequence[str]) -> str:
    """The caption, with what its columns do not count, what their texts are, and the marks that they use."""
    sizes: dict[str, float] = {}
    for row in (r for r in rows if r.family != "none"):
        if (size := row.number("memory", "parts_bytes", "unquantized")) is not None:
            sizes[row.model] = min(size, sizes.get(row.model, size))
    kept = " and ".join(f"{MB * size:.3g} MB of {model}" for model, size in sorted(sizes.items()))
    marks = frame[[c for c in frame.columns if c.endswith("_disturbed")]]
    more = (
        f"bits/weight is of the quantized layers; embeddings, norms and heads stay in fp32: {kept}; "
        "whole model: all of its weights and the adapter's"
        if kept
        else "",
        "In domain: text of the kind that calibrations and adapters are gathered on"
        if any(run.domain(name) for name in names)
        else "",
        DISTURBANCES if marks.to_numpy().any() else "",
    )
    return " ".join([caption(run, rows, names), *(f"{text}." for text in more if text)])


def methods_table(run: Run, kind: str) -> list[Table]:
    """The table of one kind of model, ranked within each (model, task)."""
    ranking, metric = run.ranking(kind)
    rows = run.select("beneath", kind=kind)
    ordered: list[tuple[Row, str]] = []
    for model, task in sorted({(r.model, r.task) for r in rows}):
        group = [(r, r.metric(ranking)) for r in rows if (r.model, r.task) == (model, task)]
        group.sort(key=lambda pair: (pair[1].value is None, pair[1].value or 0.0, pair[0].method))
        numbers = ranks([s for _, s in group], [r.items(ranking) for r, _ in group])
        ordered += zip([r for r, _ in group], numbers, strict=True)
    frame = pd.DataFrame([fill(run, row, kind) | {"rank": rank} for row, rank in ordered])
    if frame.empty:
        return []
    names = [m for m in METRICS if metric_kind(m) == kind]
    title = f"Methods beneath the adapter, {kind} models ({', '.join(sorted({r.model for r in rows}))})"
    notes = [
        f"Ranked by {metric.heading} to the unquantized model; = marks a rank shared with the first row of that rank, "
        "from which the row is not told apart on the same items (95 % interval of the paired difference).",
        *(("The cosine distance is that of the backbone without its adapter.",) if kind == "encoder" else ()),
        "Speed-ups are over the fp32 model of the same run: above 1 is faster.",
        f"{WEIGHT_ERROR}.",
        "Peak of a step: memory of a training step of the `speed` cell, whose batch the table of training memory has.",
        "A dash is a figure that was not measured; the table of failures says why where a cell did not finish.",
    ]
    shown = columns(run, kind, rows)
    return [Table(f"methods-{kind}", title, shown, frame, said(run, rows, frame, names), tuple(notes))]


@table("methods-encoder")
def encoder(run: Run) -> list[Table]:
    """Ranked by the cosine distance of the pooled embeddings."""
    return methods_table(run, "encoder")


@table("methods-causal")
def causal(run: Run) -> list[Table]:
    """Ranked by KL divergence on Wikipedia text."""
    return methods_table(run, "causal")
