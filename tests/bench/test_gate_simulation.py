"""The gate on a simulated machine: it finds what it must, and what it says by chance is as rare as it claims."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from bench.gate.blocks import blocks
from bench.gate.verdict import Interval, Rule, change_since, decide, interval, judge
from tests.bench.gate_toys import Machine

RULE = Rule(margin=0.05)


def found(ratio: float, seed: int, again: float = 1.0, **machine: float):
    sick = Machine(seed, **machine)
    return decide(blocks(sick.makers(ratio, again), sick, np.random.default_rng(seed)), RULE, seed)


def verdicts(ratio: float, trials: int, **machine: float) -> Counter[str]:
    return Counter(found(ratio, seed, **machine).verdict for seed in range(trials))


def test_the_same_code_is_never_called_slow_or_faster():
    # half the margin is more than six standard errors of the last look; OK is missed where bursts gather
    count = verdicts(1.0, 200)
    assert count["SLOW"] == count["FASTER"] == 0
    assert count["OK"] >= 190


def test_a_slow_down_of_the_margin_is_found():
    count = verdicts(1.05, 200)
    assert count["SLOW"] >= 190
    assert count["OK"] <= 5


def test_a_speed_up_is_said():
    assert verdicts(1 / 1.06, 100)["FASTER"] >= 95


@pytest.mark.parametrize(("ratio", "wrong"), [(math.sqrt(1.05), "SLOW"), (1 / math.sqrt(1.05), "FASTER")])
def test_false_alarms_at_the_worst_that_may_pass_are_as_rare_as_stated(ratio: float, wrong: str):
    # stated: 2.5 % over all looks; of 200 trials 5, and more than 13 in one of a thousand
    assert verdicts(ratio, 200)[wrong] <= 13


def test_a_slow_down_of_the_margin_passes_as_rarely_as_stated():
    assert verdicts(1.05, 200, noise=0.04, placement=0.03)["OK"] <= 13


@pytest.mark.parametrize("ratio", [1.0, 1.05])
def test_too_noisy_is_undecided_and_says_so(ratio: float):
    results = [found(ratio, seed, noise=0.3, placement=0.4) for seed in range(100)]
    assert sum(f.verdict == "INCONCLUSIVE" for f in results) >= 95
    assert all(f.blocks == 72 for f in results if f.verdict == "INCONCLUSIVE")
    assert all("margin of 5.0%" in f.reason for f in results if f.verdict == "INCONCLUSIVE")


def test_twice_the_time_is_seen_through_noise_in_which_five_percent_are_not():
    assert verdicts(2.0, 50, noise=0.3, placement=0.3)["SLOW"] == 50


def test_what_the_reference_shows_beside_itself_is_no_slow_down():
    """A bias that the control has as well must not be called one; it is an instrument out of order."""
    results = Counter(found(1.08, seed, again=1.08).verdict for seed in range(50))
    assert results == {"INCONCLUSIVE": 50}


def test_a_clear_case_ends_at_the_first_look():
    assert {found(1.5, seed).blocks for seed in range(20)} == {18}


def test_every_version_has_every_place_equally_often():
    """In a cycle of orders each version is first, middle and last as often, and each block reads forth and back."""
    places: Counter[tuple[str, int]] = Counter()
    read: list[str] = []

    class Listening(Machine):
        def __call__(self, call, runs=1):
            read.append(call.__name__)
            return 1.0

    def maker(name):
        def make(_):
            def call():
                return 1.0

            call.__name__ = name
            return call

        return make

    stream = blocks({n: maker(n) for n in "abc"}, Listening(0), np.random.default_rng(0))
    next(stream)
    del read[:-6]
    list(islice(stream, 11))
    for start in range(0, len(read), 6):
        block = read[start : start + 6]
        assert block == block[::-1]
        assert sorted(block[:3]) == ["a", "b", "c"]
        for place, name in enumerate(block[:3]):
            places[name, place] += 1
    assert set(places.values()) == {4}
    assert len(places) == 9


def test_each_block_has_inputs_of_its_own():
    made: list[object] = []

    def make(_):
        call = object
        made.append(call)
        return lambda: 1.0

    list(islice(blocks({"a": make, "b": make}, Machine(0), np.random.default_rng(0)), 5))
    assert len(made) == 2 + 2 * 5  # one each to see how long it takes, then one each a block


@pytest.mark.parametrize("n", [18, 36, 72])
def test_intervals_cover_the_centre_of_bimodal_and_heavy_tailed_series(n: int):
    rng = np.random.default_rng(n)
    draws = (
        lambda: 0.02 * rng.standard_t(3, n),
        lambda: 0.02 * rng.choice([-1.0, 1.0], n) + 0.003 * rng.standard_normal(n),
    )
    missed = [not (i.low <= 1 <= i.high) for d in draws for k in range(300) for i in [interval(d(), RULE.level, k)]]
    assert sum(missed) <= 22  # 600 at 1/60 are 10; more than 22 in one of a thousand


def test_a_change_since_a_record_has_the_scatter_of_both():
    rng = np.random.default_rng(1)
    missed, widths = 0, []
    for k in range(300):
        before, now = 0.05 * rng.standard_normal(36), math.log(1.1) + 0.01 * rng.standard_normal(36)
        change = change_since(before, now, 0.95, k)
        missed += not (change.low <= 1.1 <= change.high)
        widths.append(change.high - change.low)
    assert missed <= 28  # 5 % of 300 are 15; more than 28 in one of a thousand
    assert np.median(widths) > 0.03


def test_the_rule_in_its_own_words():
    still = Interval(1.0, 0.99, 1.01)
    assert judge(Interval(1.04, 1.026, 1.06), still, 0.05) == ("SLOW", "")
    assert judge(Interval(1.03, 1.02, 1.049), still, 0.05) == ("OK", "")
    assert judge(Interval(1.03, 1.02, 1.06), still, 0.05)[0] == "INCONCLUSIVE"
    assert judge(Interval(0.9, 0.88, 0.97), still, 0.05) == ("FASTER", "")
    assert judge(Interval(1.04, 1.026, 1.06), Interval(1.0, 0.9, 1.03), 0.05)[0] == "INCONCLUSIVE"
    assert judge(Interval(1.0, 0.99, 1.01), Interval(1.0, 0.94, 1.01), 0.05)[0] == "INCONCLUSIVE"


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.1, float("nan")])
def test_a_margin_that_is_none_is_refused(margin: float):
    with pytest.raises(ValueError, match="margin must be between 0 and 1"):
        Rule(margin)
