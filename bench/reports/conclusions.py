"""A few plain sentences computed from the rows: what a reader in a hurry should take away, with the figures."""

from __future__ import annotations

from bench.reports.escape import plain
from bench.reports.frames import Row, Run
from bench.reports.ranks import told_apart
from bench.reports.stats import estimate_text, number_text
from bench.schema import METRICS

__all__ = ["conclusions"]

FOUR_BITS = 4.6  # at most this many stored bits per weight counts as a 4-bit method
TOLERATED = 5.0  # points of accuracy
USEFUL = 2.0  # times the perplexity of LoRA on the unquantized model


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
    text = (
        f"At no more than {FOUR_BITS} stored bits per weight, {plain(best.method)} "
        f"({number_text(bits(best), 4)} bits) stays nearest to the unquantized {plain(best.model)}: "
        f"{metric.heading} {figure}{unit}"
    )
    equals = [
        r
        for _, _, r in known[1:]
        if r.task == best.task
        and not told_apart(best.metric(name), r.metric(name), best.items(name), r.items(name))
        and (bits(r) or 0.0) < (bits(best) or 0.0)
    ]
    if equals:
        least = min(equals, key=lambda r: (bits(r) or 0.0, r.method))
        text += f"; {plain(least.method)} is not told apart from it at {number_text(bits(least), 4)} bits"
    return [text + "."]


def smallest_without_loss(run: Run) -> list[str]:
    """The fewest bits at which the sample rules out that more than `TOLERATED` points of accuracy are lost."""
    rows = [(b, r.method, r) for r in run.select("beneath", kind="encoder") if (b := bits(r)) is not None]
    for size, method, row in sorted(rows, key=lambda found: found[:2]):
        stat = row.metric("accuracy")
        change = stat.difference
        if change.value is not None and change.low is not None and change.low > -TOLERATED:
            return [
                f"The smallest method shown to lose less than {TOLERATED:g} points of accuracy on {plain(row.task)} is "
                f"{plain(method)} at {number_text(size, 4)} bits: {estimate_text(change, signed=True)} points against "
                f"the unquantized {plain(row.model)}, n = {stat.n} texts."
            ]
    return []


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


def fastest(run: Run) -> list[str]:
    """The largest speed-up at batch 1 of a quantized method, if any is faster beyond its interval."""
    rows = [r for r in run.select("beneath", "speed", "qlora") if r.family != "none"]
    timed = [
        (stat.value, r.method, r.model, stat, how)
        for r in rows
        for path, how in (("forward_b1", ""), ("forward_b1_bf16", " with bfloat16 activations"))
        if (stat := r.speedup(f"{path}_ratio")).value is not None and not r.within_noise(path)
    ]
    device = ", ".join(run.distinct("speed", "device")) or "this device"
    faster = [found for found in timed if found[3].low is not None and found[3].low > 1]
    if not faster:
        any_timed = any(r.speedup("forward_b1_ratio").value is not None for r in rows)
        said = f"No quantized method was faster than fp32 at batch 1 beyond its interval on {plain(device)}."
        return [said] if any_timed else []
    _, method, model, stat, how = max(faster, key=lambda found: (found[0] or 0.0, *found[1:3]))
    text = estimate_text(stat)
    return [f"Fastest at batch 1 on {plain(device)} is {plain(method)} on {plain(model)}{how}: {text} times fp32."]


def unfinished(run: Run) -> list[str]:
    bad = sum(r.get("status") != "ok" for r in run.records)
    if not bad:
        return [f"All {len(run.records)} cells finished."] if run.records else []
    return [f"{bad} of {len(run.records)} cells did not finish; the table of failures says why."]
