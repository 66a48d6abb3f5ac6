"""No quantization: the weight in fp32 or bf16, the two baselines of every table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import Dense

__all__ = ["Unquantized"]


@dataclass(frozen=True)
class Unquantized(Quantizer):
    """Store the weight in `dtype`: "float32", "bfloat16" or "float16"."""

    dtype: str = "float32"

    source = "IEEE 754 binary32; bfloat16: Kalamkar et al. 2019, arXiv 1905.12322"
    idea = "the weight itself in a floating dtype"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {self.dtype!r}")

    @property
    def family(self) -> str:
        return "none"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        return Dense((n, k), torch.float32, weight.to(getattr(torch, self.dtype)))


register("fp32", Unquantized("float32"))
register("bf16", Unquantized("bfloat16"))
