"""Optimal non-uniform quantization: the 2**bits levels of least squared error, by one-dimensional k-means.

One table for the tensor, for each row, or for each run of `rows` rows, stored in float16. With a group scale the
weights are first divided by the absmax of their group, and the k-means weighs each by its scale squared, so that the
error minimised is still that of the weights. On a Gaussian this is the Lloyd-Max quantizer.
Source: Lloyd 1982, IEEE Trans. Inf. Theory 28(2); solver: `quant.kmeans1d`; per-channel tables for language models:
Kim et al. 2023 (SqueezeLLM), arXiv 2306.07629.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import Codebook
from quant.grouping import Group, check_group, check_scale, decode_scale, expand, grouped, store_scale
from quant.kmeans1d import kmeans1d
from quant.levels import nearest_codes, store_levels, tables

__all__ = ["KMeans", "optimal_levels"]


@dataclass(frozen=True)
class KMeans(Quantizer):
    """`bits` 1..8; `rows` weight rows share a table, 0: all; `scale` and `group` as in grouping, both or neither."""

    bits: int = 4
    rows: int = 0
    group: Group = "tensor"
    scale: str | Quantizer | None = None

    source = "Lloyd 1982, IEEE Trans. Inf. Theory 28(2); Kim et al. 2023 (SqueezeLLM), arXiv 2306.07629"
    idea = "the levels of least squared error, by exact one-dimensional k-means"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be 1..8, got {self.bits}")
        if self.rows < 0:
            raise ValueError(f"rows must be 0 (one table) or the rows that share a table, got {self.rows}")
        check_group(self.group)
        if self.scale is not None:
            check_scale(self.scale)
        elif self.group != "tensor":
            raise ValueError(f"group {self.group!r} needs a scale, for example scale='float16'")

    @property
    def family(self) -> str:
        return "double quantization" if isinstance(self.scale, Quantizer) else "non-uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        scale: Tensor | QuantizedTensor | None = None
        importance: Tensor | None = None
        if self.scale is not None:
            scale = store_scale(grouped(weight, self.group).abs().amax(-1), self.scale)
            step = expand(decode_scale(scale), (n, k), self.group).expand(n, k)
            importance = step.square()
            weight = torch.where(step > 0, weight / step, 0.0)
        levels = store_levels(optimal_levels(weight, 1 << self.bits, self.rows, importance), "float16")
        codes = pack(nearest_codes(weight, levels, self.rows), self.bits)
        return Codebook((n, k), torch.float32, codes, levels, scale, None, self.bits, self.group, self.rows)


def optimal_levels(weight: Tensor, count: int, rows: int = 0, importance: Tensor | None = None) -> Tensor:
    """Levels [tables, count] float32, ascending, of least sum of importance * error**2 over each table's weights."""
    n = len(weight)
    full = n // rows * rows if rows else n
    parts = []
    for part in (slice(0, full), slice(full, n)):  # a short last run of rows is a table of its own
        if len(w := weight[part]):
            run = min(rows, len(w))
            values = tables(w, run).cpu().numpy()
            h = None if importance is None else tables(importance[part], run).cpu().double().numpy()
            if h is not None:
                h = h / np.maximum(h.max(), np.finfo(np.float64).tiny)
            parts.append(kmeans1d(values, count, h, threads=torch.get_num_threads()))
    return torch.from_numpy(np.concatenate(parts)).to(weight.device, torch.float32)


for _bits in (4, 3):
    register(f"kmeans-{_bits}bit-tensor", KMeans(_bits, 0))
for _bits in (4, 3, 2):
    register(f"kmeans-{_bits}bit-row", KMeans(_bits, 1))
register("kmeans-4bit-rows16", KMeans(4, 16))
