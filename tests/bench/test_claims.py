"""What a row may claim: its rank, its marks, its interval, and the sentence about the fastest."""

# ruff: noqa: RUF001
from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from bench.reports.conclusions import conclusions
from bench.reports.frames import Run
from bench.reports.ranks import ranks
from bench.reports.selection import ONE_SIDED, paired_low
from bench.reports.stats import Stat, estimate_text
from bench.reports.table import TABLES
from tests.bench.sample_records import METHODS, record
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


def test_a_disturbed_time_has_a_mark_of_its_own_and_the_interval_keeps_its_own() -> None:
    timed, busy = record("minilm", "speed", "nf4"), record("minilm", "speed", "nf3")
    timed["speed"]["prefill_ratio"] |= {"value": 1.3, "low": 1.2, "high": 1.4, "within_noise": True}
    busy["speed"]["prefill_ratio"] |= {"value": 1.0, "low": 0.9, "high": 1.1}
    busy["speed"]["prefill_bf16_ratio_bf16"] |= {"value": 0.7, "low": 0.6, "high": 0.8}
    busy["speed"]["noisy"] = True
    (made,) = TABLES["speed"](Run([timed, busy]))
    heading, *rows = markdown_cells(made.markdown_page())
    first, second = sorted(rows, key=lambda row: row[heading.index("method")], reverse=True)
    at = heading.index("prefill (× fp32)")
    assert (first[at], second[at]) == ("1.30 ± 0.10 †", "1.00 ± 0.10 ≈ †")
    assert second[heading.index("prefill in bf16 (× bf16)")] == "0.70 ± 0.10 †"
    assert not first[heading.index("forward b1 (× fp32)")].endswith("†")
    text = made.markdown_page()
    assert "† marks a ratio of times" in text
    assert "≈ also marks" not in text


def test_the_fastest_is_sought_among_those_that_are_faster_beyond_their_interval() -> None:
    wild, sure = record("minilm", "speed", "nf4"), record("minilm", "speed", "uniform-int8-g64")
    for one, (value, low, high) in ((wild, (1.6, 0.9, 1.8)), (sure, (1.5, 1.4, 1.6))):
        one["speed"]["forward_b1_ratio"] = {"value": value, "low": low, "high": high, "n": 9}
        one["speed"]["forward_b1_bf16_ratio"] = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    assert any("uniform-int8-g64" in text and "1.50" in text for text in conclusions(Run([wild, sure])))


def test_a_busy_machine_is_not_in_the_sentence_about_speed_and_its_absence_is_said() -> None:
    quiet, busy = record("minilm", "speed", "nf4"), record("minilm", "speed", "uniform-int8-g64")
    for one, (value, low, high) in ((quiet, (0.8, 0.7, 0.9)), (busy, (1.5, 1.4, 1.6))):
        for path in ("forward_b1_ratio", "forward_b1_bf16_ratio"):
            one["speed"][path] = {"value": value, "low": low, "high": high, "n": 9}
    (faster,) = (text for text in conclusions(Run([quiet, busy])) if "faster" in text or "Fastest" in text)
    assert "uniform-int8-g64" in faster
    busy["speed"]["noisy"] = True
    (none,) = (text for text in conclusions(Run([quiet, busy])) if "faster" in text or "Fastest" in text)
    assert none.startswith("No quantized method was faster")
    assert "million weights on average" in none
    assert "fp32 and bfloat16 activations" in none
    assert "2 of 4 ratios" in none
    assert any("on a quiet machine" in text for text in conclusions(Run([busy])))


@pytest.mark.parametrize(("wrong", "right", "n"), [(0, 0, 256), (11, 7, 256), (12, 2, 44), (3, 9, 100), (5, 0, 40)])
def test_the_bound_is_where_the_score_meets_its_quantile(wrong: int, right: int, n: int) -> None:
    """The share that turned right, most likely under the bound, is found on a grid here and in closed form there."""
    low = paired_low(wrong, right, n, ONE_SIDED)
    rights = np.linspace(1e-12, (1 + low) / 2 - 1e-12, 400_001)
    wrongs, kept = rights - low, 1 - 2 * rights + low
    likely = wrong * np.log(wrongs) + right * np.log(rights) + (n - wrong - right) * np.log(kept)
    best = float(rights[int(np.argmax(likely))])
    z = (right - wrong - n * low) / (n * (2 * best - low - low**2)) ** 0.5
    assert z == pytest.approx(NormalDist().inv_cdf(1 - ONE_SIDED), rel=1e-3)


def test_without_a_text_that_turned_there_is_a_bound_in_closed_form() -> None:
    z = NormalDist().inv_cdf(1 - 1e-3)
    assert paired_low(0, 0, 256, 1e-3) == pytest.approx(-(z**2) / (256 + z**2), rel=1e-9)


def turned(method: str, wrong: int, right: int, n: int = 400) -> dict[str, Any]:
    one = record("minilm", "beneath", method)
    change = (right - wrong) / n
    one["accuracy"]["accuracy"] |= {"turned_wrong": wrong, "turned_right": right, "n": n, "delta": change}
    return one


def test_a_method_picked_out_of_many_is_held_to_the_bound_of_all_of_them() -> None:
    """12 lost and 5 gained of 400 rule out 5 points alone, not as one of forty rows."""
    small, sure = turned("nf2", 12, 5), turned("nf4", 1, 1)
    others = [turned(m, 90, 0) for m in METHODS if METHODS[m][0] == "uniform" or m.startswith(("cluster", "kmeans"))]
    assert len(others) > 25

    def smallest(rows: list[dict[str, Any]]) -> str:
        return next(text for text in conclusions(Run(rows)) if "to lose less than" in text)

    assert "is nf2 at" in smallest([small])
    assert "is nf4 at" in smallest([small, sure, *others])
    assert f"all {2 + len(others)} rows" in smallest([small, sure, *others])
    none = smallest([small, *others])
    assert none.startswith("No method is shown")
    assert "The nearest to it is nf2" in none
    assert "-1.75 points, at worst -5." in none


def causal(method: str, wiki: float, reviews: float) -> dict[str, Any]:
    one = record("smollm2", "beneath", method)
    for text, value in (("wiki", wiki), ("reviews", reviews)):
        one["accuracy"][f"kl_{text}"] = {"value": value, "low": value - 0.001, "high": value + 0.001, "n": 8}
    return one


def test_the_causal_headline_stands_only_where_both_texts_agree() -> None:
    nearer = causal("nf4", 0.1, 0.2)
    (said, *_) = conclusions(Run([nearer, causal("mxfp4", 0.2, 0.3)]))
    assert "nf4 (4.500 bits) stays nearest" in said
    assert "KL, Wikipedia, out of domain 0.1000 ± 0.0010" in said
    assert "KL, reviews, in domain 0.2000 ± 0.0010" in said
    (said, *_) = conclusions(Run([nearer, causal("mxfp4", 0.2, 0.1)]))
    assert "the texts disagree" in said
    assert "nf4 (4.500 bits) by KL, Wikipedia" in said
    assert "mxfp4 (4.250 bits) by KL, reviews" in said
    assert "stays nearest to the unquantized smollm2: nf4" in said


def test_no_text_is_called_out_of_domain_where_calibrations_are_of_others_than_adapters() -> None:
    one = causal("nf4", 0.1, 0.2)
    one["key_parts"] = {"protocol": {"calibration_corpora": ["imdb", "wikipedia"]}}
    run = Run([one, causal("mxfp4", 0.2, 0.3)])
    (said, *_) = conclusions(run)
    assert "KL, Wikipedia 0.1000 ± 0.0010" in said
    assert "KL, reviews 0.2000 ± 0.0010" in said
    assert "domain" not in TABLES["methods-causal"](run)[0].markdown_page()


def test_the_front_table_has_both_texts_and_what_is_not_quantized() -> None:
    (made,) = TABLES["methods-causal"](Run([causal("nf4", 0.1, 0.2)]))
    heading, row = markdown_cells(made.markdown_page())
    assert row[heading.index("KL, reviews, in domain (nats/token)")] == "0.2000 ± 0.0010"
    assert row[heading.index("KL, Wikipedia, out of domain (nats/token)")] == "0.1000 ± 0.0010"
    assert float(row[heading.index("bits/weight, whole model")]) > 2 * float(row[heading.index("bits/weight")])
    assert "stay in fp32: 113 MB of smollm2" in made.caption
