"""Metrics: closed forms, pairing, and no figure where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bench.metrics import LABEL_METRICS, TEXT_METRICS, InvalidError, cosine_distance
from bench.metrics.labels import difference_interval, mcnemar


def label_outputs(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"logits": logits, "labels": torch.arange(len(logits)) % 2}


def some_logits(seed: int, n: int = 60) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def test_mcnemar_is_the_binomial_tail_of_the_texts_that_turned():
    base = torch.tensor([True] * 10 + [False] * 10)
    method = base.clone()
    method[:6] = False
    method[10] = True
    # 7 turned, 6 of them wrong: 2 P(X >= 6) = 2 (7 + 1) / 128
    assert mcnemar(method, base) == pytest.approx(16 / 128)
    assert mcnemar(base, base) == 1.0


def test_a_model_compared_with_itself_differs_by_exactly_nothing():
    outputs = label_outputs(some_logits(0))
    for name, metric in LABEL_METRICS.items():
        found = metric(outputs, outputs, name)
        for key in ("delta", "delta_low", "delta_high"):
            assert found.get(key, 0.0) == 0.0
        assert found.get("p_value", 1.0) == 1.0
    assert LABEL_METRICS["kl_labels"](outputs, outputs, "")["value"] == 0.0
    assert LABEL_METRICS["label_agreement"](outputs, outputs, "")["value"] == 1.0


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 4), (0, 6), (1, 8), (9, 1), (20, 35), (30, 31), (3, 14)])
def test_interval_of_an_accuracy_difference_holds_zero_exactly_where_mcnemar_sees_no_difference(lost, won):
    right = torch.tensor([False] * lost + [True] * won + [True] * 100)
    base = torch.tensor([True] * lost + [False] * won + [True] * 100)
    low, high = difference_interval(100, lost, won, len(right))
    assert low <= (won - lost) / len(right) <= high
    if mcnemar(right, base) > 0.05:
        assert low <= 0 <= high
    if mcnemar(right, base) < 0.01:
        assert not low <= 0 <= high


def test_interval_of_an_accuracy_difference_covers_what_it_should():
    """Over seeded draws of 256 texts, 12 in a hundred changed: 95 % of the intervals hold the true difference."""
    rng = np.random.default_rng(0)
    shares = np.array([0.62, 0.08, 0.04, 0.26])  # right by both, lost, won, wrong by both
    draws = rng.multinomial(256, shares, size=1500)
    held = [
        low <= -0.04 <= high for low, high in (difference_interval(b, lo, w, 256) for b, lo, w, _ in draws.tolist())
    ]
    assert 0.94 < np.mean(held) < 0.98  # 0.95 +- 2 binomial standard errors, and the widening to 0


def test_paired_interval_of_a_published_example():
    """Newcombe 1998, method 10, counts 36, 12, 2, 0 of 50: 0.2 with 0.0569 to 0.3404."""
    low, high = difference_interval(36, 2, 12, 50)
    assert (low, high) == (pytest.approx(0.0569, abs=5e-5), pytest.approx(0.3404, abs=5e-5))


def test_metrics_that_rank_keep_the_value_of_every_item():
    found = TEXT_METRICS["kl"](torch.tensor([0.25, 0.5, 1.0]), None, "")
    assert found["items"] == [0.25, 0.5, 1.0]
    far = cosine_distance(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), "")
    assert far["items"] == [0.0, 1.0]


def test_losses_keep_those_of_every_item_in_nats():
    """So that what is made of several losses of one text has an interval over texts."""
    nll = torch.tensor([3.0, 4.5, 2.25]).double()
    found = TEXT_METRICS["perplexity"](nll, nll - 1, "")
    assert found["items"] == nll.tolist()
    assert found["value"] == pytest.approx(math.exp(3.25))
    loss = LABEL_METRICS["loss"](label_outputs(torch.tensor([[2.0, 0.0], [0.0, 0.0]])), None, "")
    assert loss["items"] == [pytest.approx(x, rel=1e-5) for x in (math.log(1 + math.exp(-2)), math.log(2))]


def test_label_metrics_of_a_known_case():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    base = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    outputs, baseline = label_outputs(logits), label_outputs(base)
    accuracy = LABEL_METRICS["accuracy"](outputs, baseline, "")
    assert accuracy["value"] == 0.75
    assert accuracy["delta"] == -0.25
    assert (accuracy["turned_wrong"], accuracy["turned_right"]) == (1, 0)
    losses = [math.log(1 + math.exp(-2)), math.log(2), math.log(1 + math.exp(-1)), math.log(1 + math.exp(-1))]
    assert LABEL_METRICS["loss"](outputs, None, "")["value"] == pytest.approx(sum(losses) / 4)
    p = 1 / (1 + math.e)
    one = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert LABEL_METRICS["kl_labels"](outputs, baseline, "")["value"] == pytest.approx(one / 4)


def test_a_paired_difference_is_known_better_than_the_two_means():
    nll = torch.rand(40, generator=torch.Generator().manual_seed(0)).double() * 2 + 3
    worse = nll + 0.05 + 0.01 * torch.randn(40, generator=torch.Generator().manual_seed(1))
    found = TEXT_METRICS["perplexity"](worse, nll, "")
    assert found["ratio_low"] < math.exp(0.05) < found["ratio_high"]
    assert found["ratio_low"] > 1.0
    assert found["p_value"] < 1e-6
    # the two intervals by themselves overlap widely
    alone = TEXT_METRICS["perplexity"](nll, None, "")
    assert found["low"] < alone["high"]


def test_perplexity_is_the_exponential_of_the_mean_loss_and_its_difference_adds_up():
    nll, base = torch.tensor([1.0, 2.0, 3.0, 2.5, 1.5, 2.0]), torch.tensor([1.0, 1.5, 3.0, 2.0, 1.5, 2.0])
    found = TEXT_METRICS["perplexity"](nll, base, "ppl")
    assert found["value"] == pytest.approx(math.exp(2.0))
    assert found["value"] - found["delta"] == pytest.approx(math.exp(float(base.mean())))
    assert found["delta_low"] <= found["delta"] <= found["delta_high"]
    assert found["protocol"] == "ppl"
    assert found["higher_is_better"] is False


def test_cosine_distance_of_known_angles():
    base = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    turned = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert cosine_distance(turned, base, "")["value"] == pytest.approx((0 + 1 + 2) / 3)
    assert cosine_distance(base, base, "")["value"] == 0.0


def test_what_is_no_number_becomes_no_figure():
    bad = label_outputs(some_logits(0))
    bad["logits"][3, 1] = float("nan")
    with pytest.raises(InvalidError, match="invalid: 1 of 120 logits"):
        LABEL_METRICS["accuracy"](bad, None, "")
    with pytest.raises(InvalidError, match="invalid: 2 of 4 window scores"):
        TEXT_METRICS["perplexity"](torch.tensor([1.0, float("inf"), float("nan"), 2.0]), None, "")
    with pytest.raises(InvalidError, match="overflows"):
        TEXT_METRICS["perplexity"](torch.tensor([1.0, 1e4]), None, "")


def test_figures_of_different_items_are_not_paired():
    with pytest.raises(ValueError, match="cannot be paired"):
        TEXT_METRICS["perplexity"](torch.ones(3), torch.ones(4), "ppl")
