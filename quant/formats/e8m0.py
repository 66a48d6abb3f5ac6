"""Powers of two in one byte: 2**(code - 127), the scale format E8M0 of the OCP Microscaling specification v1.0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import QuantizedTensor

__all__ = ["E8M0"]

BIAS = 127
NAN = 255
MANTISSA = 23  # bits below the exponent of a float32


@dataclass(frozen=True, eq=False)
class E8M0(QuantizedTensor, format="e8m0"):
    """`codes` [n, k] uint8, 0..254; 255 means NaN in the specification and is refused here."""

    codes: Tensor

    stored_parts = {"codes": "codes"}

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.uint8 or tuple(self.codes.shape) != self.shape:
            raise ValueError(f"E8M0 codes must be uint8 {self.shape}, got {self.codes.dtype} {tuple(self.codes.shape)}")
        if bool((self.codes == NAN).any()):
            raise ValueError("E8M0 code 255 means NaN; scales must be numbers")

    @classmethod
    def store(cls, exponents: Tensor) -> E8M0:
        """Store 2**`exponents`, whole numbers [n, k], clamped to -127..127."""
        codes = (exponents + BIAS).clamp(0, NAN - 1).to(torch.uint8)
        return cls((codes.shape[0], codes.shape[1]), torch.float32, codes)

    def decode(self) -> Tensor:
        bits = self.codes.int() << MANTISSA  # the exponent field of a float32 has the same bias
        return torch.where(bits > 0, bits, 1 << (MANTISSA - 1)).view(torch.float32)
