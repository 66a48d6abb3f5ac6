"""Metrics of a causal model from one score per window [w] (means over its tokens; see `bench.tasks.language`).

perplexity   exp(mean nll). Its difference to the baseline comes from the paired ratio exp(mean(nll - nll_base)),
             whose interval is carried over: delta = perplexity_base * (ratio - 1). Also {ratio, ratio_low,
             ratio_high}, and "items", which are the nll
kl           mean of KL(baseline || model), nats per token
top1         mean of [both find the same token most likely]
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from bench.metrics.base import TEXT_METRICS, InvalidError, TextMetric, figure, items

__all__: list[str] = []

LARGEST_NLL = 700.0  # nats; exp of more is no float


def _perplexity(nll: Tensor, base: Tensor | None, where: str) -> dict[str, Any]:
    if float(nll.max()) > LARGEST_NLL:
        raise InvalidError(f"invalid: a window's mean loss is {float(nll.max()):.3g} nats, its perplexity overflows")
    out = figure(nll, base, where, higher_is_better=False)
    if base is not None:
        for end in ("", "_low", "_high"):
            delta = out[f"delta{end}"]
            ratio = None if delta is None else math.exp(delta)
            out[f"ratio{end}"] = ratio
            out[f"delta{end}"] = None if ratio is None else math.exp(float(base.mean())) * (ratio - 1)
    for end in ("value", "low", "high"):
        out[end] = None if out[end] is None else math.exp(out[end])
    return out | items(nll)


def _kl(kl: Tensor, base: Tensor | None, where: str) -> dict[str, Any]:
    return figure(kl, None, where, higher_is_better=False) | items(kl)


def _top1(top1: Tensor, base: Tensor | None, where: str) -> dict[str, Any]:
    return figure(top1, None, where, higher_is_better=True)


for _metric in (
    TextMetric("perplexity", "nll", _perplexity),
    TextMetric("kl", "kl", _kl, compares=True),
    TextMetric("top1", "top1", _top1, compares=True),
):
    TEXT_METRICS[_metric.name] = _metric
