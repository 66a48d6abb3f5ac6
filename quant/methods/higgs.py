"""HIGGS: a random Hadamard rotation, then codes that are optimal for normal weights.

Rotated weights of a group of g are nearly N(0, s**2) with s = |group|_2 / sqrt(g), whatever they were before, so the
squared error is that of the code on the normal distribution times s**2: Lloyd-Max .1175, .03455 and .009501 at 2, 3
and 4 bits, .1076 for pairs at 2 bits. No data and no learned table are needed. One scale a group of g = 1024 columns,
or the largest power of two that divides k (576 = 9 * 64 has groups of 64): 16 / g bits a weight in float16.
Source: Malinovskii et al. 2024 (HIGGS), arXiv 2411.17525, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.grouping import check_scale
from quant.hadamard import group_of
from quant.methods.gaussian import LloydMax, Pairs
from quant.methods.rotated import Hadamard

__all__ = ["HIGGS"]


@dataclass(frozen=True)
class HIGGS(Quantizer):
    """`bits` 1..8 of one weight at a time (`dimension` 1), or 2 of `dimension` 2; `scale` as in grouping.

    `size` and `seed` as in `Hadamard`; the groups of the rotation are those of the scales.
    """

    bits: int = 4
    dimension: int = 1
    scale: str | Quantizer = "float16"
    size: int = 1024
    seed: int = 0

    source = "Malinovskii et al. 2024 (HIGGS), arXiv 2411.17525"
    idea = "rotate, then round to the levels of least squared error for normal weights"

    def __post_init__(self) -> None:
        if self.dimension not in (1, 2):
            raise ValueError(f"dimension must be 1 or 2, got {self.dimension}")
        if self.dimension == 2 and self.bits != 2:
            raise ValueError(f"bits of dimension 2 must be 2, got {self.bits}")
        check_scale(self.scale)
        self._rotated(self.size)

    @property
    def family(self) -> str:
        return "double quantization" if isinstance(self.scale, Quantizer) else "non-uniform"

    def _rotated(self, group: int) -> Hadamard:
        code = Pairs(group, self.scale) if self.dimension == 2 else LloydMax(group, self.scale, self.bits)
        return Hadamard(code, self.size, self.seed)

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        return self._rotated(group_of(weight.shape[1], self.size)).quantize(weight)


register("higgs-4bit", HIGGS(4))
register("higgs-3bit", HIGGS(3))
register("higgs2-2bit", HIGGS(2, 2))
