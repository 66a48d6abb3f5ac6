"""Four-bit floating point: sign, two exponent bits, one mantissa bit (E2M1), magnitudes 0, .5, 1, 1.5, 2, 3, 4, 6.

FP4      w ~ level / 6 * max|group|, level nearest, ties to the even mantissa
bnb      w ~ level * max|group| with bitsandbytes' "fp4" table in its order of codes: its smallest magnitude is 1/192
         where E2M1 / 6 has 1/12, the other six agree; ties to the lower value
MXFP4    w ~ level * 2**e, e = floor(log2 max|group|) - 2, stored in a byte; magnitudes above 6 saturate. With the
         exponent rounded up, e = ceil(log2(max|group| / 6)), none does and most steps stay the same

Zero has one code, 0: the code of minus zero is never written (bitsandbytes writes either, by build).
Sources: OCP Microscaling Formats (MX) specification v1.0, sections 5.3 and 6.3; bitsandbytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import E8M0, FixedCodebook
from quant.grouping import (
    Group,
    check_group,
    check_scale,
    decode_scale,
    expand,
    grouped,
    inverse_of,
    largest_of,
    store_scale,
)
from quant.methods.double import DynamicMap
from quant.nearest import nearest_in_groups

__all__ = ["BNB_FP4_LEVELS", "E2M1_LEVELS", "FP4", "MXFP4", "nearest_e2m1"]

E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_LEVELS = (*E2M1_MAGNITUDES, *(-v for v in E2M1_MAGNITUDES))  # by code: bit 3 is the sign
BNB_MAGNITUDES = (0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
BNB_FP4_LEVELS = (*BNB_MAGNITUDES, *(-v for v in BNB_MAGNITUDES))


def nearest_e2m1(x: Tensor) -> Tensor:
    """Codes uint8 of the E2M1 numbers nearest to `x`, ties to the even mantissa, saturating at 6."""
    size = x.abs()
    codes = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
    for i, (low, high) in enumerate(pairwise(E2M1_MAGNITUDES)):
        middle = (low + high) / 2
        codes += size > middle if i % 2 == 0 else size >= middle
    return codes + ((x < 0) & (codes > 0)) * torch.tensor(8, dtype=torch.uint8)


@dataclass(frozen=True)
class FP4(Quantizer):
    """`table` "e2m1" or "bnb"; `group` an int, "channel" or "tensor"; `scale` a dtype name or a quantizer.

    Codes are chosen with the stored maximum for E2M1 and with the original one for bitsandbytes' table.
    """

    table: str = "e2m1"
    group: Group = 64
    scale: str | Quantizer = "float16"

    source = "OCP Microscaling specification v1.0, section 5.3; bitsandbytes"
    idea = "levels of a four-bit floating-point number"

    def __post_init__(self) -> None:
        if self.table not in ("e2m1", "bnb"):
            raise ValueError(f"table must be 'e2m1' or 'bnb', got {self.table!r}")
        check_group(self.group)
        check_scale(self.scale)

    @property
    def family(self) -> str:
        return "double quantization" if isinstance(self.scale, Quantizer) else "non-uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        largest = largest_of(grouped(weight, self.group))
        scale = store_scale(largest, self.scale)
        if self.table == "bnb":
            levels = torch.tensor(BNB_FP4_LEVELS, device=weight.device)
            order = torch.cat([levels[9:].argsort() + 9, levels[:8].argsort()])  # without minus zero
            ranks = nearest_in_groups(weight, inverse_of(largest), levels[order], self.group)
            codes = order.to(torch.uint8)[ranks.int()]
        else:
            levels = torch.tensor(E2M1_LEVELS, device=weight.device) / 6
            codes = nearest_e2m1(weight * expand(6 * inverse_of(decode_scale(scale)), (n, k), self.group))
        return FixedCodebook((n, k), torch.float32, pack(codes, 4), levels[None], scale, None, 4, self.group, 0)


@dataclass(frozen=True)
class MXFP4(Quantizer):
    """E2M1 numbers in groups of `group` (32 in the specification) that share a power of two.

    `rounding` of its exponent is "floor", the specification's, or "ceil": no number saturates.
    """

    group: int = 32
    rounding: str = "floor"

    source = "OCP Microscaling Formats (MX) specification v1.0; Rouhani et al. 2023, arXiv 2310.10537"
    idea = "four-bit floating point under a shared power of two"

    def __post_init__(self) -> None:
        check_group(self.group)
        if self.rounding not in ("floor", "ceil"):
            raise ValueError(f"rounding must be 'floor' or 'ceil', got {self.rounding!r}")

    @property
    def family(self) -> str:
        return "non-uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        largest = largest_of(grouped(weight, self.group))
        mantissa, exponent = torch.frexp(largest)  # mantissa in [1/2, 1): 8 * mantissa against 6
        exponent = exponent - 3
        if self.rounding == "ceil":
            exponent += mantissa > 0.75
        scale = E8M0.store(torch.where(largest > 0, exponent, -127))
        inverse = E8M0.store(-exponent).decode()
        codes = nearest_e2m1(weight * expand(inverse, (n, k), self.group))
        levels = torch.tensor([E2M1_LEVELS], device=weight.device)
        return FixedCodebook((n, k), torch.float32, pack(codes, 4), levels, scale, None, 4, self.group, 0)


register("fp4-g64", FP4())
register("fp4-bnb-g64", FP4("bnb", scale="float32"))
register("fp4-g64-dq", FP4(scale=DynamicMap()))
register("mxfp4", MXFP4())
