"""Double quantization: quantizers for the scales of another quantizer. Pass one as any method's `scale` setting.

`DynamicMap` is QLoRA's: subtract the mean, cut the flattened scales into blocks of 256, and store each as an 8-bit code
of a signed table whose spacing shrinks towards zero by decades ("dynamic tree"), times the block's absolute maximum.
At 64 weights a scale it costs 8/64 + 32/(64 * 256) = 0.127 bits a weight instead of 0.5.
`Flat` quantizes any weight as one row, so that groups cross rows: blocks of scales, bitsandbytes' blocks of weights.
Sources: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3; table: Dettmers 2016, arXiv 1511.04561.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer
from quant.formats import FixedCodebook, Reshaped
from quant.grouping import check_group, expand, grouped, inverse_of, largest_of
from quant.nearest import nearest

__all__ = ["DynamicMap", "Flat", "dynamic_levels"]


def dynamic_levels() -> Tensor:
    """The signed 8-bit dynamic table, [256] float32 ascending, from -0.993 to 1; equal to bitsandbytes' bit by bit.

    Decade i of 0..6 is (0.1, 1) cut into 2**i equal parts, represented by their centres, times 10**(i - 6).
    """
    positive: list[float] = []
    for i in range(7):
        cuts = torch.linspace(0.1, 1, 2**i + 1)
        positive += (10.0 ** (i - 6) * ((cuts[:-1] + cuts[1:]) / 2)).tolist()
    return torch.tensor(sorted([*positive, *(-v for v in positive), 0.0, 1.0]))


@dataclass(frozen=True)
class DynamicMap(Quantizer):
    """8-bit dynamic codes in blocks of `group` consecutive values, rows ignored, around the mean of all values.

    Values that are all non-negative, as scales are, never decode below zero: where the nearest level would (a scale
    far below its block's largest), the next level up is taken. bitsandbytes lets such a scale turn its weights'
    signs; every other code is the exactly nearest one, as its CUDA code has it (its CPU build rounds through a table of
    65536 entries and differs in a few codes of ten thousand).
    """

    group: int = 256

    source = "Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3; bitsandbytes"
    idea = "8-bit dynamic codes for the scales of another method"

    def __post_init__(self) -> None:
        check_group(self.group)
        if not isinstance(self.group, int):
            raise ValueError(f"group of a dynamic map must be an integer, got {self.group!r}")

    @property
    def family(self) -> str:
        return "double quantization"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        levels = dynamic_levels().to(weight.device)
        flat = weight.reshape(1, n * k)
        offset = flat[0].mean()
        rest = flat - offset
        scale = largest_of(grouped(rest, self.group))
        spread = expand(scale, (1, n * k), self.group)
        codes = nearest(rest * inverse_of(spread), levels)
        if float(flat.min()) >= 0:
            codes += levels[codes.int()] * spread + offset < 0
        inner = FixedCodebook((1, n * k), torch.float32, codes, levels[None], scale, offset[None], 8, self.group, 0)
        return Reshaped((n, k), torch.float32, inner)


@dataclass(frozen=True)
class Flat(Quantizer):
    """Quantize [n, k] as the one row [1, n * k] with `method`, so that its groups run over the ends of rows."""

    method: Quantizer

    source = "bitsandbytes (blocks over the flattened weight)"
    idea = "groups that cross rows"

    @property
    def family(self) -> str:
        return self.method.family

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        return Reshaped((n, k), torch.float32, self.method.quantize(weight.reshape(1, n * k)))
