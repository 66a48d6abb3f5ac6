"""A few plain sentences computed from the rows: what a reader in a hurry should take away, with the figures."""

from __future__ import annotations

from bench.reports.escape import plain
from bench.reports.frames import Row, Run
from bench.reports.stats import estimate_text, number_text

__all__ = ["conclusions"]

FOUR_BITS = 4.6  # at most this many stored bits per weight counts as a 4-bit method


def conclusions(run: Run) -> list[str]:
    """At most six sentences; none where the records do not carry them."""
    found: list[str] = []
    for kind in ("encoder", "causal"):
        found += nearest(run, kind)
    found += smallest_without_loss(run) + training(run) + fastest(run) + unfinished(run)
    return found[:6]


def bits(row: Row) -> float | None:
    return row.number("memory", "bits_per_weight")


def nearest(run: Run, kind: str) -> list[str]:
    """The 4-bit method with the smallest distance to the unquantized model."""
    name, metric = run.ranking(kind)
    rows = [r for r in run.select("beneath", kind=kind) if (b := bits(r)) is not None and b <= FOUR_BITS]
    known = sorted((r.metric(name).value or 0.0, r.method, r) for r in rows if r.metric(name).value is not None)
    if not known:
        return []
    best = known[0][2]
    figure = estimate_text(best.metric(name))
    unit = f" {metric.unit}" if metric.unit else ""
    return [
        f"At no more than {FOUR_BITS} stored bits per weight, {plain(best.method)} "
        f"({number_text(bits(best), 4)} bits) stays nearest to the unquantized {plain(best.model)}: "
        f"{metric.heading} {figure}{unit}."
    ]


def smallest_without_loss(run: Run) -> list[str]:
    """The fewest bits at which the paired accuracy difference is inside its interval."""
    rows = [(b, r.method, r) for r in run.select("beneath", kind="encoder") if (b := bits(r)) is not None]
    for size, method, row in sorted(rows, key=lambda found: found[:2]):
        stat = row.metric("accuracy")
        change = stat.difference
        if change.value is not None and change.contains(0.0):
            return [
                f"The smallest method whose accuracy on {plain(row.task)} cannot be told from the unquantized "
                f"{plain(row.model)}'s is {plain(method)} at {number_text(size, 4)} bits: "
                f"{estimate_text(change, signed=True)} points, n = {stat.n}."
            ]
    return []


def training(run: Run) -> list[str]:
    """The peak of QLoRA against LoRA on the model where it saves most."""
    saved = []
    for row in run.select("qlora"):
        lora = run.find(row, "lora", method="fp32") or next(
            (r for r in run.select("lora") if (r.model, r.task) == (row.model, row.task)), None
        )
        peak = row.number("training_memory", "peak_bytes")
        whole = lora.number("training_memory", "peak_bytes") if lora else None
        if peak and whole:
            saved.append((peak / whole, row.model, row.method, peak, whole))
    if not saved:
        return []
    share, model, method, peak, whole = min(saved)
    return [
        f"Training an adapter on {plain(model)} peaks at {number_text(peak / 1e6)} MB over {plain(method)} against "
        f"{number_text(whole / 1e6)} MB over fp32 ({number_text(share, 2)} times)."
    ]


def fastest(run: Run) -> list[str]:
    """The largest speed-up at batch 1 of a quantized method, if any is faster beyond its interval."""
    rows = [r for r in run.select("beneath", "speed", "qlora") if r.family != "none"]
    timed = [(s.value, r.method, r.model, s) for r in rows if (s := r.speedup("forward_b1_ratio")).value is not None]
    if not timed:
        return []
    value, method, model, stat = max(timed, key=lambda found: (found[0] or 0.0, found[1], found[2]))
    device = ", ".join(run.distinct("speed", "device")) or "this device"
    if (stat.low if stat.low is not None else value or 0.0) <= 1:
        return [f"No quantized method was faster than fp32 at batch 1 beyond its interval on {plain(device)}."]
    text = estimate_text(stat)
    return [f"Fastest at batch 1 on {plain(device)} is {plain(method)} on {plain(model)}: {text} times fp32."]


def unfinished(run: Run) -> list[str]:
    bad = sum(r.get("status") != "ok" for r in run.records)
    if not bad:
        return [f"All {len(run.records)} cells finished."] if run.records else []
    return [f"{bad} of {len(run.records)} cells did not finish; the table of failures says why."]
