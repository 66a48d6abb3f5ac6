"""Weight clustering: the weights of a layer share a codebook of `clusters` values, ceil(log2(clusters)) bits a code.

Where the centroids start decides where Lloyd's iteration ends:
exact     the optimum itself (`quant.kmeans1d`); no iteration needed
linear    evenly from the smallest to the largest weight: Deep Compression's choice, kind to the rare large weights
density   evenly in the cumulative distribution
The last two are followed by `iterations` steps of Lloyd; a centroid with no weights stays where it is. What they lack
to the optimum is a finding, so they stop there. With `tune` the centroids are trainable: the gradient of a centroid is
the sum of the gradients of its weights.
Source: Han, Mao and Dally 2016, Deep Compression, arXiv 1510.00149, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import Codebook
from quant.grouping import decode_scale, expand
from quant.levels import nearest_codes, store_levels
from quant.methods.kmeans import optimal_levels

__all__ = ["Cluster", "levels_grad", "lloyd"]

INITS = ("exact", "linear", "density")


@dataclass(frozen=True)
class Cluster(Quantizer):
    """`clusters` 2..256; `init` of "exact", "linear", "density"; `tune` stores the centroids float32 and trains them.

    `iterations` of Lloyd follow a linear or density start.
    """

    clusters: int = 16
    init: str = "exact"
    tune: bool = False
    iterations: int = 100

    source = "Han, Mao and Dally 2016 (Deep Compression), arXiv 1510.00149"
    idea = "the weights of a layer share a few values"

    def __post_init__(self) -> None:
        if not 2 <= self.clusters <= 256:
            raise ValueError(f"clusters must be 2..256, got {self.clusters}")
        if self.init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, got {self.init!r}")
        if self.iterations < 0:
            raise ValueError(f"iterations must not be negative, got {self.iterations}")

    @property
    def family(self) -> str:
        return "clustering"

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return (self.clusters - 1).bit_length()

    @property
    def trainable(self) -> tuple[str, ...]:
        return ("levels",) if self.tune else ()

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        if self.init == "exact":
            levels = optimal_levels(weight, self.clusters)
        else:
            x = np.sort(weight.cpu().numpy(), axis=None).astype(np.float64)
            found = lloyd(x, _start(x, self.clusters, self.init), self.iterations)
            levels = torch.from_numpy(found[None]).to(weight.device, torch.float32)
        levels = store_levels(levels, "float32" if self.tune else "float16")
        codes = pack(nearest_codes(weight, levels), self.bits)
        return Codebook((n, k), torch.float32, codes, levels, None, None, self.bits, "tensor", 0)


def _start(x: NDArray[np.float64], count: int, init: str) -> NDArray[np.float64]:
    """First centroids [count], ascending, of sorted `x`."""
    if init == "linear":
        return np.linspace(x[0], x[-1], count)
    return x[((np.arange(count) + 0.5) / count * len(x)).astype(np.int64)]


def lloyd(x: NDArray[np.float64], levels: NDArray[np.float64], iterations: int) -> NDArray[np.float64]:
    """`iterations` steps of Lloyd, or fewer when nothing moves, on sorted `x` [n] from ascending `levels`."""
    total = np.concatenate([[0.0], np.cumsum(x)])
    for _ in range(iterations):
        edge = np.concatenate([[0], np.searchsorted(x, (levels[1:] + levels[:-1]) / 2, side="right"), [len(x)]])
        mass = np.diff(edge)
        moved = np.where(mass > 0, np.diff(total[edge]) / np.maximum(mass, 1), levels)
        if np.array_equal(moved, levels):
            break
        levels = moved
    return levels


def levels_grad(quantized: Codebook, grad_weight: Tensor) -> Tensor:
    """Gradient [tables, L] of the levels, given that of the decoded weight [n, k]: a sum over each level's weights."""
    if quantized.scale is not None:
        grad_weight = grad_weight * expand(decode_scale(quantized.scale), quantized.shape, quantized.group)
    index = quantized.unpacked().long()
    count, size = quantized.levels.shape
    if count > 1:
        index += (torch.arange(len(index), device=index.device) // quantized.rows)[:, None] * size
    out = grad_weight.new_zeros(count * size)
    return out.index_add_(0, index.flatten(), grad_weight.flatten()).reshape(count, size)


for _clusters in (16, 32, 64, 256):
    register(f"cluster-{_clusters}", Cluster(_clusters))
register("cluster-16-linear", Cluster(16, "linear"))
register("cluster-16-density", Cluster(16, "density"))
register("cluster-16-tuned", Cluster(16, tune=True))
