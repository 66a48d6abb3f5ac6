"""Uniform quantization, round to nearest: w ~ (code - zero) * scale.

symmetric:   scale = max|w| / (2**(bits-1) - 1), zero = 2**(bits-1), codes 1 .. 2**bits - 1
asymmetric:  scale = (max - min) / (2**bits - 1) over the range that includes 0; zero = -min / scale, rounded to an
             integer and packed in `bits` bits (zero="integer"), or kept as a float (zero="float")

The textbook form x_hat = round(s x) / s with s = (2**(bits-1) - 1) / max|x| is the symmetric case with one float32
scale for the tensor. Codes are chosen against the scale as it is stored, so rounding the scale costs no extra step.
Source: Jacob et al. 2018, arXiv 1712.05877; group-wise: Shen et al. 2020 (Q-BERT), arXiv 1909.05840.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import Affine, Integers
from quant.grouping import (
    Group,
    check_group,
    check_scale,
    decode_scale,
    expand,
    grouped,
    inverse_of,
    largest_of,
    of_rows,
    packed_by_rows,
    store_scale,
)
from quant.methods.double import DynamicMap

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform(Quantizer):
    """`bits` 2..8; `group` an int, "channel" or "tensor"; `scale` a dtype name or a quantizer for the scales.

    `zero` is None (symmetric), "integer" or "float" (asymmetric).
    """

    bits: int = 4
    group: Group = 64
    zero: str | None = None
    scale: str | Quantizer = "float16"

    source = "Jacob et al. 2018, arXiv 1712.05877"
    idea = "round to nearest on an even grid"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be 2..8, got {self.bits}")
        check_group(self.group)
        check_scale(self.scale)
        if self.zero not in (None, "integer", "float"):
            raise ValueError(f"zero must be None, 'integer' or 'float', got {self.zero!r}")

    @property
    def family(self) -> str:
        return "double quantization" if isinstance(self.scale, Quantizer) else "uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        cells = grouped(weight, self.group)
        half, top = 1 << (self.bits - 1), (1 << self.bits) - 1
        if self.zero is None:
            step = largest_of(cells) / (half - 1)
        else:
            low, high = cells.amin(-1).clamp(max=0), cells.amax(-1).clamp(min=0)
            step = (high - low) / top
        scale = store_scale(step, self.scale)
        inverse = inverse_of(decode_scale(scale))  # an all-zero group has the code of zero
        zero: Tensor | QuantizedTensor | None = None
        shift: Tensor | float = float(half)
        if self.zero == "integer":
            shift = (-low * inverse).round().clamp(0, top)
            zero = Integers.store(shift, self.bits)
        elif self.zero == "float":
            zero = (-low * inverse).to(torch.float16)
            shift = zero.float()
        bottom = 1 if self.zero is None else 0

        def codes_of(rows: slice) -> Tensor:
            part = weight[rows]
            codes = part * expand(of_rows(inverse, rows, self.group), (len(part), k), self.group)
            if self.zero != "float":
                codes.round_()  # before the shift, whose size would cost digits
            if isinstance(shift, Tensor):
                codes += expand(of_rows(shift, rows, self.group), (len(part), k), self.group)
            else:
                codes += shift
            return codes.round_().clamp_(bottom, top).to(torch.uint8)

        packed = packed_by_rows(weight, self.bits, codes_of)
        return Affine((n, k), torch.float32, packed, scale, zero, self.bits, self.group)


for _bits in (8, 6, 5, 4, 3, 2):
    register(f"uniform-int{_bits}-g64", Uniform(_bits, 64))
for _bits in (8, 4, 3, 2):
    register(f"uniform-int{_bits}-asym-g64", Uniform(_bits, 64, zero="integer"))
register("uniform-int4-g32", Uniform(4, 32))
register("uniform-int4-g128", Uniform(4, 128))
register("uniform-int4-asym-g32", Uniform(4, 32, zero="integer"))
register("uniform-int4-float-zero-g64", Uniform(4, 64, zero="float"))
register("uniform-int8-channel", Uniform(8, "channel"))
register("uniform-int4-channel", Uniform(4, "channel"))
register("uniform-int4-tensor", Uniform(4, "tensor"))
register("uniform-int4-g64-dq", Uniform(4, 64, scale=DynamicMap()))
register("uniform-int8-textbook", Uniform(8, "tensor", scale="float32"))
