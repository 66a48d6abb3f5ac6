"""Optimal non-uniform quantization: the 2**bits levels of least squared error, by one-dimensional k-means.

One table for the tensor, for each row, or for each run of `rows` rows, stored in float16. With a group scale the
weights are first divided by the absmax of their group, and the k-means weighs each by its scale squared, so that the
error minimised is still that of the weights. On a Gaussian this is the Lloyd-Max quantizer.

With `importance` the error of a weight w_ij counts by how much the model minds it: by its Fisher information h_ij
("fisher", SqueezeLLM: the loss rises by h (w - w_hat)**2 / 2) or by the second moment h_j = E[x_j**2] of what it
multiplies ("second_moment"). A table whose weights all have h = 0 counts them alike.
Source: Lloyd 1982, IEEE Trans. Inf. Theory 28(2); solver: `quant.kmeans1d`; per-channel tables and Fisher weights for
language models: Kim et al. 2023 (SqueezeLLM), arXiv 2306.07629.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import Codebook
from quant.grouping import Group, check_group, check_scale, decode_scale, expand, grouped, largest_of, store_scale
from quant.kmeans1d import kmeans1d
from quant.levels import nearest_codes, store_levels, tables

__all__ = ["KMeans", "optimal_levels"]


@dataclass(frozen=True)
class KMeans(Quantizer):
    """`bits` 1..8; `rows` weight rows share a table, 0: all; `scale` and `group` as in grouping, both or neither.

    `importance` is None (all weights alike), "fisher" or "second_moment".
    """

    bits: int = 4
    rows: int = 0
    group: Group = "tensor"
    scale: str | Quantizer | None = None
    importance: str | None = None

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
        if self.importance not in (None, "fisher", "second_moment"):
            raise ValueError(f"importance must be None, 'fisher' or 'second_moment', got {self.importance!r}")

    @property
    def family(self) -> str:
        return "double quantization" if isinstance(self.scale, Quantizer) else "non-uniform"

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({self.importance} if self.importance else set())

    def weights(self, calibration: Calibration | None, n: int, k: int) -> Tensor | None:
        """The importance of each weight, [n, k] float32, None where all are alike."""
        if self.importance is None or calibration is None:
            return None
        if self.importance == "fisher":
            assert calibration.fisher is not None
            return calibration.fisher.float()
        assert calibration.second_moment is not None
        return calibration.second_moment.diagonal().float().expand(n, k)

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        scale: Tensor | QuantizedTensor | None = None
        importance = self.weights(calibration, n, k)
        if self.scale is not None:
            scale = store_scale(largest_of(grouped(weight, self.group)), self.scale)
            step = expand(decode_scale(scale), (n, k), self.group).expand(n, k)
            square = step.square()
            importance = square if importance is None else importance.to(step.device) * square
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
                most = h.max(1, keepdims=True)
                h = np.where(most > 0, h / np.maximum(most, np.finfo(np.float64).tiny), 1.0)
            parts.append(kmeans1d(values, count, h, threads=torch.get_num_threads()))
    return torch.from_numpy(np.concatenate(parts)).to(weight.device, torch.float32)


for _bits in (4, 3):
    register(f"kmeans-{_bits}bit-tensor", KMeans(_bits, 0))
for _bits in (4, 3, 2):
    register(f"kmeans-{_bits}bit-row", KMeans(_bits, 1))
register("kmeans-4bit-rows16", KMeans(4, 16))
register("kmeans-3bit-row-inputs", KMeans(3, 1, importance="second_moment"))
for _bits in (4, 3):
    register(f"squeezellm-{_bits}bit", KMeans(_bits, 1, importance="fisher"))
