"""How far a model is from the baseline: metrics of labels, embeddings and running text, each with its interval."""

from __future__ import annotations

from bench.metrics.base import LABEL_METRICS, TEXT_METRICS, InvalidError, LabelMetric, TextMetric, figure, finite
from bench.metrics.cosine import cosine_distance

from bench.metrics import labels, text  # isort: skip  (metrics register themselves)

__all__ = [
    "LABEL_METRICS",
    "TEXT_METRICS",
    "InvalidError",
    "LabelMetric",
    "TextMetric",
    "cosine_distance",
    "figure",
    "finite",
    "labels",
    "text",
]
