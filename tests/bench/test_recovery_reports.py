"""Tables and plot of what adapters recover and what merging costs: the figures are those of the records."""

from __future__ import annotations

import copy
import math
import statistics
from typing import Any

import numpy as np
import pytest

from bench.measure.stats import stat
from bench.qlora import QLORA as QLORA_ORDERS
from bench.reports import style
from bench.reports.conclusions import conclusions
from bench.reports.frames import Run
from bench.reports.plots import PLOTS
from bench.reports.plots.recovery import LOOKS
from bench.reports.stats import Stat
from bench.reports.table import TABLES, Table
from bench.reports.tables.recovery import STARTED, paired_share, share_of
from tests.bench.sample_records import QLORA, record, sample
from tests.bench.sample_starts import STARTS

ORDERS = (("lora", "fp32"), ("qlora", "nf2"), ("eora", "nf2"))


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(sample())


def made(run: Run, name: str) -> dict[str, Table]:
    return {table.name: table for table in TABLES[name](run)}


def test_recovery_has_a_row_for_every_started_adapter(run: Run) -> None:
    tables = made(run, "recovery")
    assert set(tables) == {"recovery-encoder", "recovery-causal"}
    for table in tables.values():
        assert len(table.frame) == len(QLORA) + 2 * len(STARTS)
        assert set(table.frame["order"]) == {"qlora", *STARTS}


def test_recovery_shows_the_figures_of_the_record_with_intervals(run: Run) -> None:
    want = record("minilm", "eora", "nf2")
    frame = made(run, "recovery")["recovery-encoder"].frame
    row = frame[(frame["method"] == "nf2") & (frame["order"] == "eora")].iloc[0]
    for metric, prefix, held in (
        ("cosine_distance", "start_", want["training"]["start"]),
        ("kl_labels", "", want["accuracy"]),
        ("loss", "", want["accuracy"]),
    ):
        key = next(c for c in frame.columns if c.startswith(f"{prefix}{metric}") and not c.endswith(("_low", "_high")))
        for end, name in (("value", ""), ("low", "_low"), ("high", "_high")):
            assert row[key + name] == pytest.approx(held[metric][end])
    assert row["start_relative_error"] == pytest.approx(want["training"]["start"]["relative_error"])


def test_the_audit_has_a_row_for_every_way_and_shares_in_percent(run: Run) -> None:
    frame = made(run, "merge-audit")["merge-audit-encoder"].frame
    pooled = frame[frame["order"] == "qa-lora"]
    assert list(pooled["way"][:5]) == ["original", "dequantized", "requantized", "zeros", "zeros16"]
    assert set(frame[frame["order"] == "qlora"]["way"]) == {"original", "dequantized", "requantized"}
    want = record("minilm", "qa-lora", "nf2")["merge_audit"]["requantized"]
    row = pooled[(pooled["method"] == "nf2") & (pooled["way"] == "requantized")].iloc[0]
    assert row["worst_layer_error"] == max(want["layers"].values())
    assert row["accuracy_delta_points"] == pytest.approx(100 * want["metrics"]["accuracy"]["delta"])


def test_records_without_a_start_or_an_audit_are_left_out() -> None:
    bare = [r | {"training": None, "merge_audit": None} for r in sample()]
    assert made(Run(bare), "recovery") == {}
    assert made(Run(bare), "merge-audit") == {}
    with style.style():
        assert PLOTS["recovery"](Run(bare)) is None


def test_every_way_to_start_looks_its_own_way() -> None:
    assert set(LOOKS) == set(STARTED) == {*QLORA_ORDERS, "gradual"}
    assert len(set(LOOKS.values())) == len(LOOKS)


def test_the_plot_holds_start_and_end_of_every_adapter(run: Run) -> None:
    with style.style():
        drawn = PLOTS["recovery"](run)
    assert drawn is not None
    data = drawn.data
    assert len(data) == 2 * (len(QLORA) + 2 * len(STARTS))
    assert set(data["order"]) == {"qlora", *STARTS}
    want = record("smollm2", "loftq", "nf2")
    row = data[(data["model"] == "smollm2") & (data["order"] == "loftq") & (data["method"] == "nf2")].iloc[0]
    assert row["start"] == pytest.approx(want["training"]["start"]["kl_reviews"]["value"])
    assert row["end_metric"] == "perplexity_reviews_ratio"
    encoder = data[data["model"] == "minilm"]
    assert all(math.isfinite(v) for v in encoder["end"])


def test_the_plot_names_what_starts_at_no_distance_and_has_no_place_on_its_axis() -> None:
    held = [r for r in sample() if r["cell"]["model"] == "minilm"]
    before = PLOTS["recovery"](Run(held))
    assert before is not None
    assert "not drawn" not in before.footer
    late = copy.deepcopy(next(r for r in held if r["cell"]["order"] == "qlora"))
    late["cell"]["order"] = "gradual"
    late["training"]["start"]["cosine_distance"]["value"] = 0.0
    after = PLOTS["recovery"](Run([*held, late]))
    assert after is not None
    assert after.footer.endswith("not drawn, as no distance is left at the start: gradual")
    assert len(after.data) == len(before.data)


def test_the_gap_is_a_share_of_that_of_a_plain_start(run: Run) -> None:
    def gap(order: str, model: str = "minilm", end: str = "") -> float:
        held = record(model, order, "nf2")["accuracy"]
        if model == "minilm":
            return held["loss"][f"delta{end}"]
        return math.log(held["perplexity_reviews"][f"ratio{end}"])

    for name, model in (("recovery-encoder", "minilm"), ("recovery-causal", "smollm2")):
        frame = made(run, "recovery")[name].frame
        rows = frame[frame["method"] == "nf2"].set_index("order")
        assert rows["gap_share_of_qlora"]["qlora"] == 1.0
        assert rows["gap_nats"]["eora"] == pytest.approx(gap("eora", model))
        assert rows["gap_share_of_qlora"]["eora"] == pytest.approx(gap("eora", model) / gap("qlora", model))
        for end, other in (("_low", "_high"), ("_high", "_low")):  # as far as both intervals allow
            want = gap("eora", model, end) / gap("qlora", model, other)
            assert rows[f"gap_share_of_qlora{end}"]["eora"] == pytest.approx(want)
    alone = [r for r in sample() if r["cell"]["order"] != "qlora"]
    assert made(Run(alone), "recovery")["recovery-encoder"].frame["gap_share_of_qlora"].isna().all()


def test_the_interval_of_a_share_is_paired_by_text_and_covers_what_it_should() -> None:
    """Gaps of 32 texts that rise and fall together: 95 % of 600 intervals hold the share, and none is as wide as the
    ends of both gaps would make it."""
    rng, held, wide = np.random.default_rng(0), 0, []
    for _ in range(600):
        lora = rng.normal(3.9, 0.5, 32)
        whole = rng.normal(3.5, 0.5, 32)
        gap = 0.45 * whole + rng.normal(0, 0.2, 32)
        found = paired_share(*([(lora + x).tolist()] for x in (gap, whole, 0)))
        assert found.value == pytest.approx(gap.mean() / whole.mean())
        held += found.low <= 0.45 <= found.high
        apart = [stat(x.tolist(), statistic="mean") for x in (gap, whole)]
        wide.append(
            (found.high - found.low) / (apart[0]["high"] / apart[1]["low"] - apart[0]["low"] / apart[1]["high"])
        )
    assert 0.93 < held / 600 < 0.97  # 0.95 and two binomial standard errors
    assert max(wide) < 0.9


def test_a_share_of_records_with_items_is_the_ratio_of_the_mean_gaps_of_all_seeds() -> None:
    """By hand: gaps of means 1.5 and 2.1 over 3 and 6 are 3.6 / 9 = 0.4; 1.5 - 0.4 x 3 = 0.3 and -0.3 are left, over
    the mean of 3 and 6."""
    wholes, gaps = {0: [2.5, 3.0, 3.5], 1: [5.0, 6.0, 7.0]}, {0: [1.4, 1.5, 1.6], 1: [2.0, 2.0, 2.3]}
    held = [record("smollm2", order, m, seed) for order, m in ORDERS for seed in (0, 1)]
    for r in held:
        seed, order = r["cell"]["seed"], r["cell"]["order"]
        own = {"lora": [0.0, 0.0, 0.0], "qlora": wholes[seed], "eora": gaps[seed]}[order]
        r["accuracy"]["perplexity_reviews"]["items"] = [4 + g for g in own]

    def found() -> Stat:
        run = Run(copy.deepcopy(held))
        (row,) = run.select("eora")
        return share_of(run, row, "perplexity_reviews", "causal")

    share = found()
    assert share.value == pytest.approx(0.4)
    rests = [[(g - 0.4 * w) / 4.5 for g, w in zip(gaps[s], wholes[s], strict=True)] for s in (0, 1)]
    within = [stat(rest, statistic="mean") for rest in rests]
    reach = math.sqrt(sum((w["high"] - w["value"]) ** 2 for w in within) / 2)
    seeds = 12.7062 * statistics.stdev([0.3 / 4.5, -0.3 / 4.5]) / math.sqrt(2)
    assert share.high - 0.4 == pytest.approx(math.hypot(reach, seeds), rel=1e-4)
    held[0]["accuracy"]["perplexity_reviews"].pop("items")
    assert found().value != pytest.approx(0.4)  # of the ratios that the records hold, which are other ones here


def test_the_report_counts_the_starts_that_leave_less_and_names_the_least() -> None:
    def said(records: list[dict[str, Any]]) -> list[str]:
        return [text for text in conclusions(Run(records)) if "other starts" in text]

    def left(order: str, value: float, low: float, high: float) -> None:
        gap[order] |= {"ratio": math.exp(value), "ratio_low": math.exp(low), "ratio_high": math.exp(high)}

    only = [r for r in sample() if r["cell"]["model"] == "smollm2" and r["cell"]["method"] in ("fp32", "nf2")]
    starts = [order for order in STARTS if order in ("loftq", "qpissa", "eora", "lq", "chained")]
    gap = {r["cell"]["order"]: r["accuracy"]["perplexity_reviews"] for r in only if r["cell"]["method"] == "nf2"}
    for order in gap:
        left(order, 4, 4, 4)
    left("loftq", 2, 1.9, 2.1)
    left("eora", 1, 0.9, 1.1)
    left("distill", 0.5, 0.5, 0.5)  # which starts at zero
    (text,) = said(only)
    assert f" 2 of {len(starts)} other starts are shown to leave less; in the estimate eora leaves the least" in text
    assert "0.250 ± 0.025 times" in text
    assert "(perplexity, reviews, 1 seed)" in text
    left("eora", 1, -3, 5)  # the least, but not told apart; loftq is
    (text,) = said(only)
    assert f" 1 of {len(starts)} other starts" in text
    left("loftq", 2, 0, 3.9)  # below 4 alone, but not as one of several
    (text,) = said(only)
    assert text.endswith(f"none of {len(starts)} other starts is shown to leave less.")
    assert said([r for r in only if r["cell"]["order"] != "qlora"]) == []
    assert said([r for r in only if r["cell"]["order"] in ("lora", "qlora", "eora")]) == []


def test_nothing_is_a_share_of_a_gap_that_may_be_none() -> None:
    held = [r for r in sample() if r["cell"]["model"] == "minilm"]
    (plain,) = [r for r in held if (r["cell"]["order"], r["cell"]["method"]) == ("qlora", "nf2")]
    plain["accuracy"]["loss"]["delta_low"] = -0.001
    frame = made(Run(held), "recovery")["recovery-encoder"].frame
    rows = frame[frame["method"] == "nf2"]
    assert len(rows) > 1
    assert rows["gap_share_of_qlora"].isna().all()


def test_the_gap_of_seeds_is_the_mean_of_their_losses() -> None:
    """Not the logarithm of the mean perplexity, which the worst seed decides."""
    held = [record("smollm2", order, "nf2", seed) for order in ("qlora", "eora") for seed in (0, 1)]
    for r in held:
        if r["cell"]["seed"]:
            for end in ("", "_low", "_high"):
                r["accuracy"]["perplexity_reviews"][f"ratio{end}"] *= 10
    frame = made(Run(held), "recovery")["recovery-causal"].frame.set_index("order")
    gaps = [math.log(r["accuracy"]["perplexity_reviews"]["ratio"]) for r in held if r["cell"]["order"] == "eora"]
    assert frame["gap_nats"]["eora"] == pytest.approx(sum(gaps) / 2)
    spread = 12.7062 * math.log(10) / 2  # of the mean of two, ln 10 apart, by Student's t
    assert frame["gap_nats_high"]["eora"] - frame["gap_nats"]["eora"] == pytest.approx(spread, rel=0.01)
