"""Weights and activations in 8 bits, and SmoothQuant, which moves the outliers of x into the weight beforehand.

    W x = (W diag(s)) (x / s)        s_j = a_j**alpha / max|w_j|**(1 - alpha)

W8A8 rounds x at the time of the product, each row by its own largest magnitude, see `quant.formats.rounded`; columns
of x that are much larger than the others take its steps for themselves. a_j is the size of column j of x: the paper
takes its maximum over the calibration texts, here it is the mean of |x_j|, which the calibration holds; where an
outlier channel is one for every token, as in language models, both order the columns alike. There the layers that read
one input share one s, which folds into the normalization before them, and the others stay as they are; here every
layer has its own: more freedom, for a multiplication of x at run time and 16 bits a column, which are counted.
Source: Xiao et al. 2022 (SmoothQuant), arXiv 2211.10438.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import RoundedInputs, Scaled
from quant.methods.awq import behind, factors
from quant.methods.uniform import Uniform

__all__ = ["W8A8", "Smooth"]

INT8 = Uniform(8, "channel")


@dataclass(frozen=True)
class W8A8(Quantizer):
    """`weights` stores the weight; x is rounded to `bits` bits a row when it is multiplied."""

    weights: Quantizer = INT8
    bits: int = 8

    source = "Dettmers et al. 2022 (LLM.int8()), arXiv 2208.07339; Xiao et al. 2022, arXiv 2211.10438"
    idea = "8-bit weights, and activations rounded to 8 bits a row: a product of whole numbers"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits of x must be 2..8, got {self.bits}")

    @property
    def family(self) -> str:
        return self.weights.family

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        inner = self.weights.quantize(weight, calibration)
        return RoundedInputs(inner.shape, torch.float32, inner, self.bits)


ROUNDED = W8A8()


@dataclass(frozen=True)
class Smooth(Quantizer):
    """`inner` quantizes the smoothed weight; `alpha` 0..1 says how much of the size of x moves into it."""

    inner: Quantizer = ROUNDED
    alpha: float = 0.5

    source = "Xiao et al. 2022 (SmoothQuant), arXiv 2211.10438"
    idea = "outliers of the activations move into the weight, then both are rounded to 8 bits"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be 0..1, got {self.alpha}")

    @property
    def family(self) -> str:
        return self.inner.family

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"magnitude"}

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        assert calibration is not None
        assert calibration.magnitude is not None
        size, largest = calibration.magnitude.to(weight).double(), weight.abs().amax(0).double()
        known = (size > 0) & (largest > 0)
        s = torch.where(known, size**self.alpha / largest ** (1 - self.alpha), 1.0)
        if bool(known.any()):
            s = torch.where(known, s, s[known].log().mean().exp())  # a dead column decides nothing
        columns = factors(s)
        inner = self.inner.quantize(weight / columns.float(), behind(calibration, columns))
        return Scaled(inner.shape, torch.float32, inner, columns)


register("w8a8", ROUNDED)
register("smooth-w8a8", Smooth())
