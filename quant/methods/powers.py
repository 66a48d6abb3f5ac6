"""Levels that hardware multiplies by with shifts: powers of two, and sums of two of them.

power of two   sign * {0, 2**-(2**(bits-1) - 2), .., 1/2, 1} (Miyashita et al. 2016, arXiv 1603.01025)
additive       sign * sums of one term out of each of two sets of powers, divided by the largest; at 4 bits the sets
               {0, 1/2, 1/4, 1/16} and {0, 1/8}, that is {0, .1, .2, .3, .4, .6, .8, 1} (Li et al. 2020, APoT, arXiv
               1909.13144, and the authors' code), at 5 bits {0, 1/2, 1/8, 1/32} and {0, 1/4, 1/16, 1/64}

The scale of a group is `clip` times its absmax: below 1 it cuts off the largest weights for finer steps elsewhere.
Zero is one level, not two, so a table has 2**bits - 1 entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import FixedCodebook
from quant.grouping import Group, check_group, check_scale, decode_scale, grouped, largest_of, store_scale
from quant.nearest import nearest_in_groups

__all__ = ["AdditivePowerOfTwo", "PowerOfTwo"]

TERMS = {3: ((1, 2, 3), ()), 4: ((1, 2, 4), (3,)), 5: ((1, 3, 5), (2, 4, 6))}  # exponents of the terms, by bits


@dataclass(frozen=True)
class PowerOfTwo(Quantizer):
    """`bits` 2..5; `group` and `scale` as in grouping; `clip` the part of the absmax that level 1 stands for."""

    bits: int = 4
    group: Group = 64
    scale: str | Quantizer = "float16"
    clip: float = 1.0

    source = "Miyashita et al. 2016, arXiv 1603.01025"
    idea = "levels are powers of two: a multiplication is a shift"

    def __post_init__(self) -> None:
        self._levels()
        check_group(self.group)
        check_scale(self.scale)
        if not 0 < self.clip <= 1:
            raise ValueError(f"clip must be above 0 and at most 1, got {self.clip}")

    @property
    def family(self) -> str:
        return "double quantization" if isinstance(self.scale, Quantizer) else "non-uniform"

    def _magnitudes(self) -> list[float]:
        """The levels from 0 to 1."""
        if not 2 <= self.bits <= 5:
            raise ValueError(f"bits of powers of two must be 2..5, got {self.bits}")
        return [0.0, *(2.0**-i for i in range((1 << (self.bits - 1)) - 1))]

    def _levels(self) -> Tensor:
        """The table [1, 2**bits - 1] float32, ascending."""
        size = sorted(self._magnitudes())
        return torch.tensor([[-s for s in size[:0:-1]] + size], dtype=torch.float32)

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        scale = store_scale(largest_of(grouped(weight, self.group)) * self.clip, self.scale)
        step = decode_scale(scale)
        inverse = torch.where(step > 0, 1 / step, 0.0)
        levels = self._levels().to(weight.device)
        codes = pack(nearest_in_groups(weight, inverse, levels[0], self.group), self.bits)
        return FixedCodebook((n, k), torch.float32, codes, levels, scale, None, self.bits, self.group, 0)


@dataclass(frozen=True)
class AdditivePowerOfTwo(PowerOfTwo):
    """As `PowerOfTwo`, with sums of two powers and `bits` 3, 4 or 5; at 3 bits they are the powers themselves."""

    source = "Li et al. 2020 (APoT), arXiv 1909.13144"
    idea = "levels are sums of two powers of two: denser near the largest than powers alone"

    def _magnitudes(self) -> list[float]:
        if self.bits not in TERMS:
            raise ValueError(f"bits of additive powers of two must be 3, 4 or 5, got {self.bits}")
        first, second = ([0.0, *(2.0**-i for i in exponents)] for exponents in TERMS[self.bits])
        sums = [a + b for a in first for b in second]
        return [s / max(sums) for s in sums]


register("pot-4bit-g64", PowerOfTwo(4, 64))
register("apot-4bit-g64", AdditivePowerOfTwo(4, 64))
