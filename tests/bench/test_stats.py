"""Intervals cover what they say they cover, and say what they are."""

import json

import numpy as np
import pytest

from bench.measure.stats import paired_ratio, stat

DRAWS = {
    "normal": (lambda r, n: r.standard_normal(n), 0.0, 0.0),
    "exponential": (lambda r, n: r.exponential(size=n), float(np.log(2)), 1.0),
    "bursts": (lambda r, n: 1 + 0.01 * r.standard_normal(n) + 3 * (r.random(n) < 0.1), 1.00139, None),
}


def coverage(draw, truth, n, statistic, trials):
    rng = np.random.default_rng(n)
    figures = [stat(draw(rng, n), statistic=statistic, seed=i) for i in range(trials)]
    return sum(f["low"] <= truth <= f["high"] for f in figures) / trials


@pytest.mark.parametrize("n", [6, 7, 8, 11, 30])
@pytest.mark.parametrize("name", DRAWS)
def test_interval_of_a_median_covers_it_in_95_of_100_cases(name, n):
    draw, median, _ = DRAWS[name]
    # 2000 trials: a true 95 % is seen as 93.5-96.5 %; the discreteness of few samples adds up to 1.5 points
    assert 0.92 <= coverage(draw, median, n, "median", 2000) <= 0.98


@pytest.mark.parametrize("n", [6, 10, 40])
def test_interval_of_a_mean_covers_it_in_95_of_100_cases(n):
    draw, _, mean = DRAWS["normal"]
    assert 0.92 <= coverage(draw, mean, n, "mean", 500) <= 0.98


def test_skewed_mean_is_covered_with_enough_samples():
    draw, _, mean = DRAWS["exponential"]
    assert 0.92 <= coverage(draw, mean, 100, "mean", 500) <= 0.98


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_samples_give_their_range_which_covers_as_documented(n):
    draw, median, _ = DRAWS["normal"]
    assert stat(np.arange(n))["interval"] == "range"
    assert coverage(draw, median, n, "median", 4000) == pytest.approx(1 - 2.0 ** (1 - n), abs=0.025)


def test_interpolated_order_statistics_of_ten():
    # by hand: P(2 .. 9 holds the median) = 1 - 22/1024, P(3 .. 8) = 1 - 112/1024; lambda = 8 I / (2 + 6 I)
    inner = (1 - 22 / 1024 - 0.95) / (90 / 1024)
    low = 2 + 8 * inner / (2 + 6 * inner)
    figure = stat([3, 1, 2, 10, 9, 8, 7, 4, 5, 6])
    assert figure == {
        "value": 5.5,
        "low": pytest.approx(low),
        "high": pytest.approx(11 - low),
        "n": 10,
        "interval": "order95",
    }


def test_mean_is_marked_bootstrap_and_repeats_exactly():
    x = np.random.default_rng(0).exponential(size=50)
    first = stat(x, statistic="mean", seed=3)
    assert first == stat(x, statistic="mean", seed=3)
    assert first["interval"] == "bootstrap95"
    assert first["low"] != stat(x, statistic="mean", seed=4)["low"]
    assert first["value"] == pytest.approx(x.mean())


def test_more_samples_than_a_block_holds_are_resampled_in_blocks(monkeypatch):
    x = np.random.default_rng(1).standard_normal(400)
    whole = stat(x, statistic="mean")
    monkeypatch.setattr("bench.measure.stats.BLOCK", 1000)
    parts = stat(x, statistic="mean")
    assert parts["low"] == pytest.approx(whole["low"], abs=0.01)  # 4000 resamples of a mean with s.e. 0.05


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [float("inf")], [2.0]])
def test_what_is_unknown_is_null_with_a_reason(samples):
    figure = stat(samples)
    assert figure["low"] is None
    assert figure["high"] is None
    assert figure["reason"]
    assert (figure["value"] is None) == (samples != [2.0])
    json.dumps(figure, allow_nan=False)


def test_equal_samples_have_an_interval_of_no_width():
    assert stat([0.5] * 9)["low"] == stat([0.5] * 9)["high"] == 0.5


def test_unknown_statistic_is_named():
    with pytest.raises(ValueError, match="'median' or 'mean', got 'mode'"):
        stat([1.0], statistic="mode")


def test_pairing_removes_a_drift_that_both_share():
    rng = np.random.default_rng(0)
    drift = np.linspace(1, 5, 40)
    b = drift * (1 + 0.01 * rng.standard_normal(40))
    a = 2 * drift * (1 + 0.01 * rng.standard_normal(40))
    ratio = paired_ratio(list(a), list(b))
    assert ratio["low"] < 2 < ratio["high"]
    assert ratio["high"] - ratio["low"] < 0.05  # the drift alone spans a factor of five


def test_ratio_is_a_over_b_and_refuses_what_does_not_pair():
    assert paired_ratio([2.0, 4.0], [1.0, 1.0])["value"] == 3.0
    with pytest.raises(ValueError, match="2 and 1"):
        paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="must be positive, got 0"):
        paired_ratio([1.0, 2.0], [1.0, 0.0])
