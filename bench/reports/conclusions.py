"""A few plain sentences computed from the rows: what a reader in a hurry should take away, with the figures."""

from __future__ import annotations

import math
from statistics import NormalDist

from bench.reports.escape import plain
from bench.reports.frames import Row, Run
from bench.reports.ranks import told_apart
from bench.reports.selection import lowest_change
from bench.reports.stats import Z95, Stat, estimate_text, number_text
from bench.reports.tables.recovery import judged, share_of, started
from bench.schema import METRICS

__all__ = ["conclusions"]

FOUR_BITS = 4.6  # at most this many stored bits per weight counts as a 4-bit method
TOLERATED = 5.0  # points of accuracy
STARTS = ("loftq", "qpissa", "eora", "lq", "chained")  # whose adapter holds something before the first step
USEFUL = 2.0  # times the perplexity of LoRA on the unquantized model


def conclusions(run: Run) -> list[str]:
    """At most seven sentences; none where the records do not carry them."""
    found: list[str] = []
    for kind in ("encoder", "causal"):
        found += nearest(run, kind)
    found += smallest_without_loss(run) + training(run) + recovered(run) + fastest(run) + unfinished(run)
    return found[:7]


def bits(row: Row) -> float | None:
    return row.number("memory", "bits_per_weight")


def nearest(run: Run, kind: str) -> list[str]:
    """The 4-bit method with the smallest distance to the unquantized model, on every text that the model was judged on:
    where the first differs from text to text there is no such method, and the sentence says that."""
    name, _ = run.ranking(kind)
    names = [name, *(f"kl_{t}" for t in run.texts if t != run.text)] if kind == "causal" else [name]
    rows = [r for r in run.select("beneath", kind=kind) if (b := bits(r)) is not None and b <= FOUR_BITS]
    firsts = [first for n in names if (first := first_of(rows, n)) is not None]
    if not firsts:
        return []
    figures = [figure(run, first, n) for first, n in zip(firsts, names, strict=False)]
    best = firsts[0]
    limit = f"At no more than {FOUR_BITS} stored bits per weight,"
    if any(first != best for first in firsts):
        each = "; ".join(f"{sized(first)} by {text}" for first, text in zip(firsts, figures, strict=True))
        return [f"{limit} the texts disagree on what stays nearest to the unquantized {plain(best.model)}: {each}."]
    said = f"{limit} {sized(best)} stays nearest to the unquantized {plain(best.model)}: {'; '.join(figures)}"
    equals = [
        r
        for r in rows
        if r.task == best.task
        and (bits(r) or 0.0) < (bits(best) or 0.0)
        and not any(told_apart(best.metric(n), r.metric(n), best.items(n), r.items(n)) for n in names)
        and r.metric(name).value is not None
    ]
    if equals:
        least = min(equals, key=lambda r: (bits(r) or 0.0, r.method))
        said += f"; {plain(least.method)} is not told apart from it at {number_text(bits(least), 4)} bits"
    return [said + "."]


def first_of(rows: list[Row], name: str) -> Row | None:
    """The row with the smallest figure of this name."""
    known = [(value, r.method, i) for i, r in enumerate(rows) if (value := r.metric(name).value) is not None]
    return rows[min(known)[2]] if known else None


def sized(row: Row) -> str:
    return f"{plain(row.method)} ({number_text(bits(row), 4)} bits)"


def figure(run: Run, row: Row, name: str) -> str:
    """`KL, Wikipedia, out of domain 0.13 ± 0.04 nats/token`."""
    metric = METRICS[name]
    unit = f" {metric.unit}" if metric.unit else ""
    return f"{metric.heading}{run.domain(name)} {estimate_text(row.metric(name))}{unit}"


def smallest_without_loss(run: Run) -> list[str]:
    """The fewest bits at which the sample rules out that more than `TOLERATED` points of accuracy are lost, the bound
    being that of a row picked out of all that were scanned; or how near the nearest comes."""
    rows = [r for r in run.select("beneath", kind="encoder") if bits(r) is not None and r.family != "none"]
    rows = [r for r in rows if r.metric("accuracy").delta is not None]
    bounds = [(low, r) for r in rows if (low := lowest_change(r, len(rows))) is not None]
    if not bounds:
        return []
    held = [(bits(r) or 0.0, r.method, low, r) for low, r in bounds if low > -TOLERATED]
    low, row = min(held, key=lambda found: found[:2])[2:] if held else max(bounds, key=lambda b: (b[0], b[1].method))
    stat = row.metric("accuracy")
    figure = f"{number_text(stat.delta, 3, signed=True)} points, at worst {number_text(low, 3, signed=True)}"
    about = (
        f"{plain(row.method)} at {number_text(bits(row), 4)} bits: {figure} against the unquantized "
        f"{plain(row.model)}, n = {stat.n} texts; the bound holds for all {len(rows)} rows scanned at once"
    )
    if held:
        said = f"The smallest method shown to lose less than {TOLERATED:g} points of accuracy on {plain(row.task)} is"
        return [f"{said} {about}."]
    said = f"No method is shown to lose less than {TOLERATED:g} points of accuracy on {plain(row.task)}"
    return [f"{said}. The nearest to it is {about}."]


def training(run: Run) -> list[str]:
    """The peak of QLoRA against LoRA on the model where it saves most, among methods that leave it useful."""
    saved = []
    for row in run.select("qlora"):
        lora = run.find(row, "lora", method="fp32") or next(
            (r for r in run.select("lora") if (r.model, r.task) == (row.model, row.task)), None
        )
        peak = row.number("training_memory", "peak_bytes")
        whole = lora.number("training_memory", "peak_bytes") if lora else None
        if peak and whole and useful(row):
            saved.append((peak / whole, row.model, row.method, peak, whole))
    if not saved:
        return []
    share, model, method, peak, whole = min(saved)
    return [
        f"Training an adapter on {plain(model)} peaks at {number_text(peak / 1e6)} MB over {plain(method)} against "
        f"{number_text(whole / 1e6)} MB over fp32 ({number_text(share, 2)} times)."
    ]


def useful(row: Row) -> bool:
    """Whether no perplexity is over `USEFUL` times, and no accuracy `TOLERATED` points under, that of the baseline."""
    worse = [row.ratio(name).value for name in METRICS if name.startswith("perplexity")]
    lost = row.metric("accuracy").delta
    return all(ratio is None or ratio <= USEFUL for ratio in worse) and (lost is None or lost >= -TOLERATED)


def recovered(run: Run) -> list[str]:
    """How many starts other than the one at zero leave less than the loss gap of `qlora`, all bounds at once, and which
    leaves the least; of the base over which most starts were trained."""
    told: dict[tuple[str, str, str], list[tuple[float, Stat, Row, str]]] = {}
    for kind in ("encoder", "causal"):
        trained = judged(run, kind)[1]
        for row in started(run, kind):
            share = share_of(run, row, trained, kind) if row.order in STARTS else Stat()
            if share.value is not None:
                told.setdefault((row.model, row.task, row.method), []).append((share.value, share, row, trained))
    if not told or len(most := max(told.values(), key=len)) < 2:
        return []
    wider = NormalDist().inv_cdf(1 - 0.025 / len(most)) / Z95
    less = [s for value, s, _, _ in most if s.high is not None and value + wider * (s.high - value) < 1]
    _, share, row, trained = min(most, key=lambda found: (found[0], found[2].order))
    seeds = f"{len(row.seeds)} seed{'s' * (len(row.seeds) > 1)}"
    base = f"over {sized(row)} on {plain(row.model)} ({METRICS[trained].heading}, {seeds})"
    gap = f"Of the loss gap that qlora leaves {base},"
    if not less:
        return [f"{gap} none of {len(most)} other starts is shown to leave less."]
    least = f"in the estimate {row.order} leaves the least, {estimate_text(share, 2)} times"
    return [f"{gap} {len(less)} of {len(most)} other starts are shown to leave less; {least}."]


def fastest(run: Run) -> list[str]:
    """The largest speed-up at batch 1 of a quantized method, if any is faster beyond its interval; of activations in
    bfloat16 and of what was timed on a quiet machine only, what the times are of named beside them."""
    rows = [r for r in run.select("beneath", "speed", "qlora") if r.family != "none"]
    device = ", ".join(run.distinct("speed", "device")) or "this device"
    timed: list[tuple[float, str, str, Row, Stat, str]] = []
    seen = 0
    for path, how in (("forward_b1", "fp32"), ("forward_b1_bf16", "bfloat16")):
        for r in rows:
            stat = r.speedup(f"{path}_ratio")
            seen += stat.value is not None
            if stat.value is not None and not r.noisy:
                met = r.disturbed(path)
                timed.append((-math.inf if met or stat.low is None else stat.low, r.method, r.model, r, stat, how))
    if not timed:
        return ["No quantized method was timed on a quiet machine, so none is called faster or slower."] if seen else []
    faster = [found for found in timed if found[0] > 1]
    left = f"; {seen - len(timed)} of {seen} ratios, timed on a busy machine, are left out" if seen > len(timed) else ""
    if not faster:
        sizes = "; ".join(sorted({f"{plain(t[2])}, {layers(run, t[3])}" for t in timed}))
        hows = " and ".join(sorted({t[5] for t in timed}, reverse=True))
        said = f"No quantized method was faster than fp32 at batch 1 on {plain(device)}, with {hows} activations"
        return [f"{said} ({sizes}){left}."]
    _, method, model, row, stat, how = max(faster, key=lambda found: (found[4].value or 0.0, *found[1:3]))
    return [
        f"Fastest at batch 1 on {plain(device)} is {plain(method)} on {plain(model)} ({layers(run, row)}, {how} "
        f"activations): {estimate_text(stat)} times fp32{left}."
    ]


def layers(run: Run, row: Row) -> str:
    """`layers of 0.295 million weights on average`, of those that are quantized: what a time is of."""
    weights = row.number("memory", "n_quantized_weights")
    count = max((len(r.table("weights", "layers")) for r in run.rows if r.model == row.model), default=0)
    return (
        f"layers of {number_text(weights / count / 1e6)} million weights on average"
        if weights and count
        else "layers of unknown size"
    )


def unfinished(run: Run) -> list[str]:
    bad = sum(r.get("status") != "ok" for r in run.records)
    if not bad:
        return [f"All {len(run.records)} cells finished."] if run.records else []
    return [f"{bad} of {len(run.records)} cells did not finish; the table of failures says why."]
