"""Quantile quantization: every level stands for the same number of weights.

The weights, divided by the absmax of their group, are sorted and cut into 2**bits runs of equal length; a level is the
mean of its run, and a code names the nearest level. One table for the tensor. This maximises the entropy of the
equal-mass codes, not the precision: the tails, where an error costs most, get few levels.
Source: Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861, section 2 and appendix F.
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
from quant.levels import store_levels
from quant.nearest import nearest_in_groups

__all__ = ["Quantile", "equal_mass_levels"]


@dataclass(frozen=True)
class Quantile(Quantizer):
    """`bits` 1..8; `group` and `scale` as in grouping."""

    bits: int = 4
    group: Group = 64
    scale: str | Quantizer = "float16"

    source = "Dettmers et al. 2022, arXiv 2110.02861"
    idea = "levels that each stand for the same number of weights"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be 1..8, got {self.bits}")
        check_group(self.group)
        check_scale(self.scale)

    @property
    def family(self) -> str:
        return "double quantization" if isinstance(self.scale, Quantizer) else "non-uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        scale = store_scale(largest_of(grouped(weight, self.group)), self.scale)
        step = decode_scale(scale)
        inverse = torch.where(step > 0, 1 / step, 0.0)
        unit = weight * expand(inverse, (n, k), self.group)
        levels = store_levels(equal_mass_levels(unit, 1 << self.bits), "float16")
        codes = pack(nearest_in_groups(weight, inverse, levels[0].float(), self.group), self.bits)
        return Codebook((n, k), torch.float32, codes, levels, scale, None, self.bits, self.group, 0)


def equal_mass_levels(values: Tensor, count: int) -> Tensor:
    """Means [1, count] float32, ascending, of `count` runs of equal length of the sorted `values`.

    Run lengths differ by one where `count` does not divide the number of values; of fewer values than levels, some
    are repeated.
    """
    x = np.sort(values.cpu().numpy(), axis=None).astype(np.float64)
    edge = np.arange(count + 1) * len(x) // count
    start = np.minimum(edge[:-1], len(x) - 1)
    stop = np.maximum(edge[1:], start + 1)
    total = np.concatenate([[0.0], np.cumsum(x)])
    means = np.clip((total[stop] - total[start]) / (stop - start), x[start], x[stop - 1])
    return torch.from_numpy(means[None]).to(values.device, torch.float32)


register("quantile-4bit-g64", Quantile(4, 64))
