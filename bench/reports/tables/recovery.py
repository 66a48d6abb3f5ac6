"""`recovery`: how much of what quantization took a new adapter gives back, by how it starts and what it is trained on.

The gap is the loss (of a causal model the mean over tokens, the logarithm of the perplexity) above that of LoRA on the
unquantized weights; it is also given as a share of the gap of `qlora` over the same base, whose adapter starts at zero.

Before the first step the record holds the distance to the unquantized model (`training.start`); after the last one
what every record holds. Differences are to LoRA on the unquantized weights, paired on the same items; a share of 1 of
the starting distance left would be an adapter that recovers nothing.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import pandas as pd

from bench.measure.stats import stat
from bench.reports.caption import caption
from bench.reports.frames import Row, Run, dig
from bench.reports.stats import Stat, number_or_none, pool
from bench.reports.table import Column, Table, put, table
from bench.reports.tables.methods import delta_key, key_of
from bench.schema import METRICS

STARTED = ("qlora", "loftq", "qpissa", "eora", "lq", "chained", "qa-lora", "distill", "gradual")


def judged(run: Run, kind: str) -> tuple[str, str, str]:
    """(metric of the start's distance, metric of what is trained on, distance after training)."""
    if kind == "encoder":
        return "cosine_distance", "loss", "kl_labels"
    return f"kl_{run.adapted}", f"perplexity_{run.adapted}", f"kl_{run.adapted}"


def start_of(row: Row, metric: str) -> Stat:
    """A metric before the first step, in the unit in which it is shown."""
    return row.stat("training", "start", metric)


def started(run: Run, kind: str) -> list[Row]:
    """Rows that say how they started, by model, task, method and order."""
    rows = [r for r in run.select(*STARTED, kind=kind) if r.table("training", "start")]
    return sorted(rows, key=lambda r: (r.model, r.task, _bits(r), r.method, STARTED.index(r.order)))


def gap_of(row: Row, trained: str, kind: str) -> Stat:
    """The loss (nats) above that of LoRA on the unquantized weights, pooled over the seeds."""
    if kind == "encoder":
        return row.metric(trained).difference
    found = [dig(record, "accuracy", trained) for record in row.records]
    return pool([log_ratio(metric) if isinstance(metric, dict) else Stat() for metric in found])


def log_ratio(metric: dict[str, Any]) -> Stat:
    """The logarithm of the paired ratio that a perplexity has beside its difference, unknown where it has none."""
    ends = (number_or_none(metric.get(f"ratio{end}")) for end in ("", "_low", "_high"))
    value, low, high = (math.log(end) if end is not None and end > 0 else None for end in ends)
    return Stat(value, low, high)


def share_of(run: Run, row: Row, trained: str, kind: str) -> Stat:
    """The gap as a share of that of `qlora` over the same base, task and seeds; unknown where that may be 0.

    It is the ratio of the mean gaps. Where records hold the loss of every text, its interval is that of the mean of
    (gap - share * gap of `qlora`) over the texts, pooled over the seeds as everywhere, in units of the mean gap of
    `qlora`. Where they do not, it reaches from the low end of one gap over the high end of the other to the reverse,
    which is wider than it need be.
    """
    plain = run.find(row, "qlora")
    if plain is None or plain.task != row.task or plain.seeds != row.seeds:
        return Stat()
    gap, whole = gap_of(row, trained, kind), gap_of(plain, trained, kind)
    if gap.value is None or whole.value is None or whole.value <= 0 or (whole.low is not None and whole.low <= 0):
        return Stat()
    if row.order == "qlora":
        return Stat(1.0)
    lora = run.find(row, "lora", method="fp32")
    if lora is not None and (lora.task, lora.seeds) == (row.task, row.seeds):
        paired = paired_share(*(losses(r, trained) for r in (row, plain, lora)))
        if paired.value is not None:
            return paired
    share = gap.value / whole.value
    if gap.low is None or gap.high is None or whole.low is None or whole.high is None:
        return Stat(share)
    ends = [g / w for g in (gap.low, gap.high) for w in (whole.low, whole.high)]
    return Stat(share, min(ends), max(ends))


def losses(row: Row, trained: str) -> list[list[float]]:
    """The losses of every text (nats), a list for each seed, in the order of the seeds; empty where there are none."""
    records = sorted(row.records, key=lambda r: int(r["cell"]["seed"]))
    return [held if isinstance(held := dig(r, "accuracy", trained, "items"), list) else [] for r in records]


def paired_share(far: list[list[float]], plain: list[list[float]], lora: list[list[float]]) -> Stat:
    """The share and its interval, of losses of the same texts in the same order, by seed; unknown without them."""
    if not far or any(not a or not len(a) == len(b) == len(c) for a, b, c in zip(far, plain, lora, strict=True)):
        return Stat()
    gaps, wholes = (
        [[x - y for x, y in zip(mine, base, strict=True)] for mine, base in zip(losses, lora, strict=True)]
        for losses in (far, plain)
    )
    mean = fmean(fmean(seed) for seed in wholes)
    if mean <= 0:
        return Stat()
    share = fmean(fmean(seed) for seed in gaps) / mean
    rests = [[(g - share * w) / mean for g, w in zip(a, b, strict=True)] for a, b in zip(gaps, wholes, strict=True)]
    rest = pool([Stat(f["value"], f["low"], f["high"]) for f in (stat(r, statistic="mean") for r in rests)])
    if rest.low is None or rest.high is None:
        return Stat(share)
    return Stat(share, share + rest.low, share + rest.high)


def _bits(row: Row) -> float:
    return row.number("memory", "bits_per_weight") or 0.0


def fill(run: Run, row: Row, kind: str) -> dict[str, Any]:
    """One row of the frame."""
    far, trained, after = judged(run, kind)
    out: dict[str, Any] = {"model": row.model, "task": row.task, "method": row.method, "order": row.order}
    out["bits_per_weight"] = row.number("memory", "bits_per_weight")
    out["start_relative_error"] = row.number("training", "start", "relative_error")
    put(out, f"start_{key_of(far)}", start_of(row, far))
    for metric in dict.fromkeys((trained, after, "accuracy")):
        put(out, key_of(metric), row.metric(metric))
        put(out, delta_key(metric), row.metric(metric).difference)
    put(out, "gap_nats", gap_of(row, trained, kind))
    put(out, "gap_share_of_qlora", share_of(run, row, trained, kind))
    return out


@table("recovery")
def recovery(run: Run) -> list[Table]:
    """One table for each kind of model; methods by bits, the orders of each together."""
    made = []
    for kind in ("encoder", "causal"):
        rows = started(run, kind)
        if not rows:
            continue
        far, trained, after = judged(run, kind)
        unit = " (nats)" if kind == "encoder" else ""
        columns = (
            *(Column(n, n, text=True, keep=6) for n in ("model", "task") if len({getattr(r, n) for r in rows}) > 1),
            Column("method", "method", text=True, keep=9),
            Column("order", "order", text=True, keep=9),
            Column("bits/weight", "bits_per_weight", digits=4, keep=4),
            Column("start: error of the weights", "start_relative_error", keep=5),
            Column(f"start: {METRICS[far].heading}", f"start_{key_of(far)}", keep=6),
            Column(f"trained: {METRICS[trained].heading}{unit}", key_of(trained), keep=5),
            Column(f"Δ {METRICS[trained].heading} to LoRA", delta_key(trained), signed=True, keep=8),
            *((Column("loss gap (nats)", "gap_nats", signed=True, keep=8),) if kind == "causal" else ()),
            Column("gap, × qlora's", "gap_share_of_qlora", digits=2, keep=8),  # noqa: RUF001
            Column(f"trained: {METRICS[after].heading}", key_of(after), keep=7),
            Column("accuracy (%)", key_of("accuracy"), keep=4),
            Column("Δ accuracy to LoRA (points)", delta_key("accuracy"), signed=True, keep=6),
        )
        frame = pd.DataFrame([fill(run, r, kind) for r in rows])
        metrics = tuple(dict.fromkeys((trained, after, *(("accuracy",) if kind == "encoder" else ()))))
        notes = (
            "Start: before the first step. The error of the weights is that of base plus adapter, over the adapted "
            "layers; a record without an interval for it has none, since nothing is sampled.",
            "All orders train for the same steps on the same texts; factors that start large learn at a share of the "
            "rate, so that a first step moves the weights no farther (`training.lr_a`, `lr_b`). `distill` is trained "
            "on the logits of the LoRA row. `gradual` starts from the unpruned base.",
            "The gap is the loss above that of LoRA on the unquantized weights (causal: of the logarithm of the "
            "perplexity), as a share of that of `qlora` over the same base: below 0.5 the start halves it; a dash "
            "where that of `qlora` is not told from 0.",
        )
        title = f"What a new adapter recovers, {kind} models"
        made.append(Table(f"recovery-{kind}", title, columns, frame, caption(run, rows, metrics), notes))
    return made
