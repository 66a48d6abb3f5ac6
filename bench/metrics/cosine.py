"""Cosine distance between two models' embeddings of the same texts: mean of 1 - p.q / (|p| |q|).

It is computed as |p / |p| - q / |q||^2 / 2, which is the same number, exact at zero and never below it. On the
un-tuned model it needs no label and separates methods whose accuracies do not differ.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from bench.metrics.base import figure, finite, items

__all__ = ["cosine_distance"]


def cosine_distance(embeddings: Tensor, base: Tensor, where: str) -> dict[str, Any]:
    """The stat over texts of the distance of `embeddings` [c, k] to `base` [c, k]."""
    finite("embedding values", embeddings)
    apart = normalize(embeddings.double(), dim=-1) - normalize(base.double(), dim=-1)
    distance = apart.square().sum(-1) / 2
    return figure(distance, None, f"cosine_distance/{where}", higher_is_better=False) | items(distance)
