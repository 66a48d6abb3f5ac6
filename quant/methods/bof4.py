"""Block-wise optimal codes (BOF4, BOF4-S): levels of least squared error for normal weights over their block's absmax.

w ~ levels[code] * a, where a is the largest of a group in magnitude: max|w| (BOF4), or that weight with its sign
(BOF4-S), which makes the level -1 superfluous and frees it for the rest. The levels minimise E[a**2 (w/a - level)**2]
over blocks of N(0, 1), with 0 and the values of the largest weight (-1 and 1, or 1) among them, so zeros and the
largest weight are exact. They are found to twelve digits by quadrature for any bits and block, see `quant.lloyd_max`,
and differ by less than 3e-4 from the tables of the paper, which are fitted to samples.
Source: Blumenberg, Graave and Fingscheidt 2025, arXiv 2505.06653, sections 3.1 and 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import FixedCodebook
from quant.grouping import Group, check_group, check_scale, decode_scale, grouped, inverse_of, store_scale
from quant.lloyd_max import AbsmaxRatio, lloyd_max
from quant.methods.double import DynamicMap, Flat
from quant.methods.uniform import Uniform
from quant.nearest import nearest_in_groups

__all__ = ["BOF", "block_levels"]


@lru_cache(maxsize=64)
def block_levels(bits: int, block: int, signed: bool) -> tuple[float, ...]:
    """The optimal levels, 2**bits ascending, of blocks of `block` values; `signed` without the level -1."""
    zero, top = (1 << (bits - 1)) - 1, (1 << bits) - 1
    held = {zero: 0.0, top: 1.0} if signed else {0: -1.0, zero: 0.0, top: 1.0}
    return tuple(lloyd_max(AbsmaxRatio(block), 1 << bits, held).tolist())


@dataclass(frozen=True)
class BOF(Quantizer):
    """`bits` 2..8; `group` and `scale` as in grouping; `signed` keeps the sign of the largest weight in the scale.

    Codes are chosen against the scale as it is stored. A signed scale needs a form that has a sign, not "e8m0".
    """

    bits: int = 4
    group: Group = 64
    scale: str | Quantizer = "float16"
    signed: bool = False

    source = "Blumenberg, Graave and Fingscheidt 2025 (BOF4), arXiv 2505.06653"
    idea = "the levels of least squared error of normal weights over the absmax of their block"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be 2..8, got {self.bits}")
        check_group(self.group)
        check_scale(self.scale)
        if self.signed and self.scale == "e8m0":
            raise ValueError("scale 'e8m0' has no sign for signed=True; use 'e4m3' or signed=False")

    @property
    def family(self) -> str:
        return "double quantization" if isinstance(self.scale, Quantizer) else "non-uniform"

    def levels(self, n: int, k: int) -> Tensor:
        """The table [2**bits] float32, ascending, for the groups of a weight [n, k]."""
        sizes = {"channel": k, "tensor": n * k}
        block = min(self.group, k) if isinstance(self.group, int) else sizes[self.group]
        return torch.tensor(block_levels(self.bits, block, self.signed))

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        levels = self.levels(n, k).to(weight.device)
        cells = grouped(weight, self.group)
        place = cells.abs().argmax(-1, keepdim=True)  # of equal ones the first
        largest = cells.gather(-1, place).squeeze(-1)
        scale = store_scale(largest if self.signed else largest.abs(), self.scale)
        codes = nearest_in_groups(weight, inverse_of(decode_scale(scale)), levels, self.group)
        packed = pack(codes, self.bits)
        return FixedCodebook((n, k), torch.float32, packed, levels[None], scale, None, self.bits, self.group, 0)


register("bof4-g64-dq", BOF(scale=DynamicMap()))
register("bof4s-g64-dq", BOF(scale=Flat(Uniform(8, 256, scale="float32")), signed=True))
