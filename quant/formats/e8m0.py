"""Powers of two in one byte: 2**(code - 127), the scale format E8M0 of the OCP Microscaling specification v1.0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import QuantizedTensor, UnsupportedError
from quant.grouping import SCALE_FORMATS

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

    @classmethod
    def nearest(cls, scale: Tensor) -> E8M0:
        """The power of two nearest to each of `scale` [n, k], halfway up; zeros become the smallest.

        Raises UnsupportedError for a negative scale: the format has no sign.
        """
        if bool((scale < 0).any()):
            raise UnsupportedError("a scale is negative, and E8M0 has no sign; store it as 'e4m3'")
        mantissa, exponent = torch.frexp(scale)  # mantissa in [1/2, 1)
        return cls.store(torch.where(scale > 0, exponent - 1 + (mantissa >= 0.75).int(), -BIAS))

    def decode(self) -> Tensor:
        bits = self.codes.int() << MANTISSA  # the exponent field of a float32 has the same bias
        return torch.where(bits > 0, bits, 1 << (MANTISSA - 1)).view(torch.float32)


SCALE_FORMATS["e8m0"] = E8M0.nearest
