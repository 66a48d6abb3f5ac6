"""What a row may claim: its rank, its marks, its interval, and the sentence about the fastest."""

# ruff: noqa: RUF001
from __future__ import annotations

from typing import Any

import pytest

from bench.reports.conclusions import conclusions
from bench.reports.frames import Run
from bench.reports.ranks import ranks
from bench.reports.stats import Stat, estimate_text
from bench.reports.table import TABLES
from tests.bench.sample_records import record
from tests.bench.test_reports import markdown_cells


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(1, 0.9, 1.1), (2, 1.9, 2.1)], ["1", "2"]),
        ([(1, 0.9, 1.1), (1.15, 1.05, 1.25), (3, 2.9, 3.1)], ["1=", "1=", "3"]),
        ([(1, 0.8, 1.2), (1.3, 1.1, 1.5), (1.6, 1.4, 1.8)], ["1=", "1=", "3"]),  # 1.6 meets 1.3, not 1
        ([(1, None, None), (1, None, None), (None, None, None)], ["1=", "1=", ""]),
    ],
)
def test_a_rank_is_shared_with_its_first_row_while_their_intervals_overlap(
    intervals: list[Any], expected: list[str]
) -> None:
    assert ranks([Stat(*i) for i in intervals]) == expected


def test_the_same_texts_tell_apart_what_intervals_do_not() -> None:
    texts = [0.1, 0.5, 0.2, 0.9, 0.3, 0.6, 0.4, 0.8]
    worse, mixed = (
        [x + 0.01 + 0.001 * i for i, x in enumerate(texts)],
        [x + 0.1 * (-1) ** i for i, x in enumerate(texts)],
    )
    wide = [Stat(0.475, 0.3, 0.65), Stat(0.4885, 0.3, 0.66)]
    assert ranks(wide) == ["1=", "1="]
    assert ranks(wide, [texts, worse]) == ["1", "2"]
    assert ranks(wide, [texts, mixed]) == ["1=", "1="]


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (9.88e6, 1.5e6, 4.6e8, "9.9e6 [1.5e6, 4.6e8]"),
        (60.2, 0.5, 121.0, "60 [0.50, 120]"),  # reaches farther than the value, and does not contain 0
        (0.32, 0.3, 0.40, "0.32 [0.30, 0.40]"),
        (1.0, 0.9, 1.2, "1.00 ± 0.20"),
        (0.5, -0.6, 1.6, "0.5 ± 1.1"),
    ],
)
def test_an_interval_that_a_half_width_would_misstate_is_written_out(
    value: float, low: float, high: float, text: str
) -> None:
    assert estimate_text(Stat(value, low, high)) == text


def test_a_ratio_within_the_noise_of_the_baseline_is_marked() -> None:
    timed = record("minilm", "speed", "nf4")
    timed["speed"]["prefill_ratio"] |= {"value": 1.3, "low": 1.2, "high": 1.4, "within_noise": True}
    (made,) = TABLES["speed"](Run([timed]))
    heading, row = markdown_cells(made.markdown_page())
    assert row[heading.index("prefill (× fp32)")] == "1.30 ± 0.10 ≈"


def test_the_fastest_is_sought_among_those_that_are_faster_beyond_their_interval() -> None:
    wild, sure = record("minilm", "speed", "nf4"), record("minilm", "speed", "uniform-int8-g64")
    for one, (value, low, high) in ((wild, (1.6, 0.9, 1.8)), (sure, (1.5, 1.4, 1.6))):
        one["speed"]["forward_b1_ratio"] = {"value": value, "low": low, "high": high, "n": 9}
        one["speed"]["forward_b1_bf16_ratio"] = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    assert any("uniform-int8-g64" in text and "1.50" in text for text in conclusions(Run([wild, sure])))
