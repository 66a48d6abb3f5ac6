"""The start of QLoRA: the base is quantized, B is zero. Dettmers et al. 2023, arXiv 2305.14314."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from quant.core import Calibration, QuantizedTensor
from quant.init.base import Init

__all__ = ["Plain"]


@dataclass(frozen=True)
class Plain(Init):
    """No correction."""

    source = "Dettmers et al. 2023 (QLoRA), arXiv 2305.14314"
    idea = "the adapter starts at zero"

    def _start(
        self, weight: Tensor, quantize: Callable[[Tensor], QuantizedTensor], calibration: Calibration | None, rank: int
    ) -> tuple[QuantizedTensor, Tensor, Tensor]:
        n, k = weight.shape
        return quantize(weight), weight.new_zeros(n, 0), weight.new_zeros(0, k)
