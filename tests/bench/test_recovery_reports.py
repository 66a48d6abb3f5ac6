"""Tables and plot of what adapters recover and what merging costs: the figures are those of the records."""

from __future__ import annotations

import math

import pytest

from bench.reports import style
from bench.reports.frames import Run
from bench.reports.plots import PLOTS
from bench.reports.table import TABLES, Table
from tests.bench.sample_records import QLORA, record, sample
from tests.bench.sample_starts import STARTS


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
