"""What a metric is: one value for every item (a text, a window), their mean with a 95 % interval, and the paired
difference to the baseline on the same items.

Intervals resample items (`bench.measure.stats`); a window counts as one item, since its tokens hang together.
Pairing follows Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640): the interval of the mean difference is
the one that says whether two models differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import ttest_1samp
from torch import Tensor

from bench.measure.stats import stat

__all__ = ["LABEL_METRICS", "TEXT_METRICS", "InvalidError", "LabelMetric", "TextMetric", "figure", "finite", "items"]


class InvalidError(ArithmeticError):
    """A model said something that is no number; the text begins with "invalid" and says how much of it."""


@dataclass(frozen=True)
class LabelMetric:
    """A metric of `logits` [n, 2] and `labels` [n]; one that `compares` needs the baseline's."""

    name: str
    measure: Callable[[Mapping[str, Tensor], Mapping[str, Tensor] | None, str], dict[str, Any]]
    compares: bool = False

    def __call__(self, outputs: Mapping[str, Tensor], base: Mapping[str, Tensor] | None, where: str) -> dict[str, Any]:
        finite("logits", outputs["logits"])
        return self.measure(outputs, base, where)


@dataclass(frozen=True)
class TextMetric:
    """A metric of one score `reads` per window, [w]; `<name>_<text>` is its name in `bench.schema.METRICS`."""

    name: str
    reads: str
    measure: Callable[[Tensor, Tensor | None, str], dict[str, Any]]
    compares: bool = False

    def __call__(self, scores: Tensor, base: Tensor | None, where: str) -> dict[str, Any]:
        finite(f"window scores ({self.reads})", scores)
        return self.measure(scores, base, where)


LABEL_METRICS: dict[str, LabelMetric] = {}
TEXT_METRICS: dict[str, TextMetric] = {}


def finite(what: str, values: Tensor) -> None:
    """Raises InvalidError when a value is not finite."""
    bad = int((~values.isfinite()).sum())
    if bad:
        raise InvalidError(f"invalid: {bad} of {values.numel()} {what} are not finite")


def figure(
    values: Tensor, base: Tensor | None, protocol: str, *, higher_is_better: bool, p_value: float | None = None
) -> dict[str, Any]:
    """The stat of `values` [n] with, given the baseline's on the same items, the paired difference of the means.

    `p_value` is by a paired t test unless given; 1 when no item differs. `protocol` says what was measured on what.
    """
    out = stat(values.tolist(), statistic="mean")
    if base is not None:
        if base.shape != values.shape:
            raise ValueError(f"{protocol}: {values.numel()} items cannot be paired with the baseline's {base.numel()}")
        difference = values.double() - base.double()
        paired = stat(difference.tolist(), statistic="mean")
        out |= {"delta": paired["value"], "delta_low": paired["low"], "delta_high": paired["high"]}
        out["p_value"] = _t_test(difference) if p_value is None else p_value
    return out | {"protocol": protocol, "higher_is_better": higher_is_better}


def items(values: Tensor) -> dict[str, Any]:
    """The values of the items [n], to six digits: two methods that are judged on the same items can be paired."""
    return {"items": [float(f"{v:.6g}") for v in values.tolist()]}


def _t_test(difference: Tensor) -> float | None:
    if not bool(difference.any()):
        return 1.0
    if difference.numel() < 2 or bool(torch.all(difference == difference[0])):
        return None
    return float(ttest_1samp(difference.numpy(), 0.0).pvalue)
