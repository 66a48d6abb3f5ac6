"""Eight-bit floating point, sign, four exponent bits, three mantissa bits (E4M3), under one float32 factor a tensor.

w ~ value * factor, factor = max|w| / 448, so that the largest weight is the largest number of the format. Numbers down
to 2**-6 have a relative step of 1/8, those to 2**-9 an absolute one of 2**-9.
Sources: Micikevicius et al. 2022, FP8 Formats for Deep Learning, arXiv 2209.05433; as a scale with a second level:
NVIDIA, NVFP4 (Transformer Engine).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import QuantizedTensor
from quant.grouping import SCALE_FORMATS, inverse_of

__all__ = ["E4M3"]

LARGEST = 448.0


@dataclass(frozen=True, eq=False)
class E4M3(QuantizedTensor, format="e4m3"):
    """`values` [n, k] float8_e4m3fn; `factor` [1] float32."""

    values: Tensor
    factor: Tensor

    stored_parts = {"values": "codes", "factor": "constants"}

    def __post_init__(self) -> None:
        if self.values.dtype != torch.float8_e4m3fn or tuple(self.values.shape) != self.shape:
            raise ValueError(
                f"E4M3 values must be float8_e4m3fn {self.shape}, got {self.values.dtype} {tuple(self.values.shape)}"
            )
        if self.factor.dtype != torch.float32 or self.factor.numel() != 1:
            raise ValueError(f"E4M3 factor must be one float32, got {self.factor.dtype} {list(self.factor.shape)}")

    @classmethod
    def store(cls, w: Tensor, factor: Tensor | None = None) -> E4M3:
        """The nearest numbers of the format to `w` [n, k] float32, of either sign; `factor` [1] if it is not to fit."""
        if factor is None:
            factor = w.abs().amax().reshape(1) / LARGEST
        scaled = (w * inverse_of(factor)).clamp_(-LARGEST, LARGEST)
        return cls((w.shape[0], w.shape[1]), torch.float32, scaled.to(torch.float8_e4m3fn), factor)

    def decode(self) -> Tensor:
        return self.values.float() * self.factor


SCALE_FORMATS["e4m3"] = E4M3.store
