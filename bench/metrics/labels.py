"""Metrics of a classifier's logits z [n, c] and labels y [n], beside the baseline's logits b on the same texts.

accuracy          mean of [argmax z = y]; its p-value is McNemar's, exact: of the texts that only one of the two
                  models labels right, the number that is the baseline's is binomial(., 1/2)
                  (McNemar 1947, Psychometrika 12:153). The interval of the difference is Newcombe's for paired
                  shares (1998, Statistics in Medicine 17:2635, method 10), widened to 0 where that test sees no
                  difference
loss              mean of -log softmax(z)_y, nats
kl_labels         mean of KL(softmax b || softmax z), nats
label_agreement   mean of [argmax z = argmax b]: equal accuracies may hide answers that changed in both directions
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from bench.metrics.base import LABEL_METRICS, LabelMetric, figure, items

__all__ = ["difference_interval", "mcnemar"]

Outputs = Mapping[str, Tensor]


def mcnemar(right: Tensor, base_right: Tensor) -> float:
    """Exact two-sided p-value that two models are right equally often, from which texts [n] each labels right."""
    lost = int((base_right & ~right).sum())
    won = int((right & ~base_right).sum())
    return 1.0 if lost + won == 0 else float(binomtest(lost, lost + won, 0.5).pvalue)


def _right(outputs: Outputs) -> Tensor:
    return outputs["logits"].argmax(-1) == outputs["labels"]


def _losses(outputs: Outputs) -> Tensor:
    log_probs = outputs["logits"].double().log_softmax(-1)
    return -log_probs.gather(-1, outputs["labels"][:, None])[:, 0]


def _accuracy(outputs: Outputs, base: Outputs | None, where: str) -> dict[str, Any]:
    right = _right(outputs)
    if base is None:
        return figure(right.double(), None, where, higher_is_better=True)
    base_right = _right(base)
    p_value = mcnemar(right, base_right)
    out = figure(right.double(), base_right.double(), where, higher_is_better=True, p_value=p_value)
    lost, won = int((base_right & ~right).sum()), int((right & ~base_right).sum())
    same = torch.equal(outputs["logits"], base["logits"])
    both = int((right & base_right).sum())
    low, high = (0.0, 0.0) if same else difference_interval(both, lost, won, len(right))
    return out | {"delta_low": low, "delta_high": high, "turned_wrong": lost, "turned_right": won}


def difference_interval(both: int, lost: int, won: int, n: int) -> tuple[float, float]:
    """95 % interval of a difference in accuracy, (won - lost) / n: of `n` texts `both` models label that many right,
    only the baseline `lost`, only the other `won`."""
    before, after, neither = both + lost, both + won, n - both - lost - won
    down, up = (_wilson(right, n) for right in (before, after))
    product = before * (n - before) * after * (n - after)
    cross = both * neither - lost * won
    shifted = max(cross - n / 2, 0) if cross > 0 else cross
    phi = shifted / math.sqrt(product) if product else 0.0
    d, p0, p1 = (won - lost) / n, before / n, after / n
    reach_low = (p1 - up[0]) ** 2 - 2 * phi * (p1 - up[0]) * (down[1] - p0) + (down[1] - p0) ** 2
    reach_high = (up[1] - p1) ** 2 - 2 * phi * (up[1] - p1) * (p0 - down[0]) + (p0 - down[0]) ** 2
    low, high = d - math.sqrt(max(reach_low, 0.0)), d + math.sqrt(max(reach_high, 0.0))
    changed = lost + won
    if not changed or binomtest(won, changed, 0.5).pvalue > 0.05:
        low, high = min(low, 0.0), max(high, 0.0)
    return low, high


def _wilson(right: int, n: int) -> tuple[float, float]:
    found = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def _loss(outputs: Outputs, base: Outputs | None, where: str) -> dict[str, Any]:
    losses = _losses(outputs)
    return figure(losses, None if base is None else _losses(base), where, higher_is_better=False) | items(losses)


def _needed(base: Outputs | None) -> Outputs:
    if base is None:
        raise ValueError("a comparison needs the baseline's outputs")
    return base


def _kl(outputs: Outputs, base: Outputs | None, where: str) -> dict[str, Any]:
    p, q = (o["logits"].double().log_softmax(-1) for o in (_needed(base), outputs))
    return figure((p.exp() * (p - q)).sum(-1).clamp(min=0), None, where, higher_is_better=False)


def _agreement(outputs: Outputs, base: Outputs | None, where: str) -> dict[str, Any]:
    same = outputs["logits"].argmax(-1) == _needed(base)["logits"].argmax(-1)
    return figure(same.double(), None, where, higher_is_better=True)


for _metric in (
    LabelMetric("accuracy", _accuracy),
    LabelMetric("loss", _loss),
    LabelMetric("kl_labels", _kl, compares=True),
    LabelMetric("label_agreement", _agreement, compares=True),
):
    LABEL_METRICS[_metric.name] = _metric
