"""LQ-LoRA: alternate as LoftQ does, but in a norm that weighs rows and columns by what they matter to the loss.

With the diagonal Fisher information F [n, k]: D_row = sqrt(mean_j F_ij), D_col = sqrt(mean_i F_ij), and the error is
||D_row (W - Q - B A) D_col||, whose best B A is an SVD away; the weighting by F itself has no closed form.
Source: Guo et al. 2023, arXiv 2311.12023, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor
from quant.init.base import Init, Norm, alternate

__all__ = ["LQ"]


@dataclass(frozen=True)
class LQ(Init):
    """`rounds` alternations at most."""

    rounds: int = 5

    source = "Guo et al. 2023 (LQ-LoRA), arXiv 2311.12023"
    idea = "LoftQ with rows and columns weighed by their Fisher information"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"fisher"})

    def _start(
        self, weight: Tensor, quantize: Callable[[Tensor], QuantizedTensor], calibration: Calibration | None, rank: int
    ) -> tuple[QuantizedTensor, Tensor, Tensor]:
        assert calibration is not None
        assert calibration.fisher is not None
        return alternate(weight, quantize, fisher_norm(calibration.fisher.to(weight)), rank, self.rounds)


def fisher_norm(fisher: Tensor) -> Norm:
    """||D_row E D_col|| for `fisher` [n, k], each scaled to a mean square of 1; rows of zeros are not seen."""
    scaled = fisher / fisher.mean().clamp(min=torch.finfo(torch.float32).tiny)
    row, column = scaled.mean(1).sqrt(), scaled.mean(0).sqrt()
    return Norm(row, column, _inverse(row), _inverse(column))


def _inverse(d: Tensor) -> Tensor:
    return torch.where(d > 1e-6 * d.max(), 1 / d, 0.0)
