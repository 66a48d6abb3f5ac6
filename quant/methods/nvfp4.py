"""NVFP4: four-bit floating point (E2M1) in groups of 16 under E4M3 scales, and these under one float32 a tensor.

w ~ level * s * f,  f = max|w| / (6 * 448),  s = E4M3(max|group| / 6 / f),  levels 0, .5, 1, 1.5, 2, 3, 4, 6

The largest of a group stands at 6, or ("four or six") at 4 where that gives the group the smaller squared error:
between 4 and 6 the format has no level. Codes are chosen against the scale as it is stored, ties to the even mantissa.
Sources: NVIDIA 2025, arXiv 2509.25149; four or six: Cook et al. 2025, arXiv 2512.02010.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import E4M3, FixedCodebook
from quant.grouping import Group, check_group, expand, grouped, inverse_of, largest_of
from quant.methods.fp4 import E2M1_LEVELS, nearest_e2m1

__all__ = ["NVFP4"]


@dataclass(frozen=True)
class NVFP4(Quantizer):
    """`group` as in grouping, 16 in the format; `four_or_six` chooses the place of the largest for each group."""

    group: Group = 16
    four_or_six: bool = False

    source = "NVIDIA 2025 (NVFP4), arXiv 2509.25149"
    idea = "four-bit floating point under eight-bit floating-point scales"

    def __post_init__(self) -> None:
        check_group(self.group)

    @property
    def family(self) -> str:
        return "non-uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        levels = torch.tensor([E2M1_LEVELS], device=weight.device)
        largest = largest_of(grouped(weight, self.group))
        scale = E4M3.store(largest / 6)
        if self.four_or_six:
            factor = largest.amax().reshape(1) / (6 * 256)  # leaves room above: 256 * 6 / 4 is a number of E4M3 too
            six, four = (E4M3.store(largest / top, factor) for top in (6, 4))
            better = self._errors(weight, four, levels[0]) < self._errors(weight, six, levels[0])
            values = torch.where(better, four.values.view(torch.uint8), six.values.view(torch.uint8))
            scale = E4M3(six.shape, torch.float32, values.view(torch.float8_e4m3fn), factor)
        codes = pack(self._codes(weight, scale), 4)
        return FixedCodebook((n, k), torch.float32, codes, levels, scale, None, 4, self.group, 0)

    def _codes(self, weight: Tensor, scale: E4M3) -> Tensor:
        inverse = expand(inverse_of(scale.decode()), (weight.shape[0], weight.shape[1]), self.group)
        return nearest_e2m1(weight * inverse)

    def _errors(self, weight: Tensor, scale: E4M3, levels: Tensor) -> Tensor:
        """Squared error of each group, [rows, groups]."""
        values = levels[self._codes(weight, scale).int()]
        error = values * expand(scale.decode(), (weight.shape[0], weight.shape[1]), self.group) - weight
        return grouped(error, self.group).square().sum(-1)


register("nvfp4", NVFP4())
register("nvfp4-four-or-six", NVFP4(four_or_six=True))
