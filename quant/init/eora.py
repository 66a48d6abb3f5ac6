"""EoRA: the correction that leaves the smallest error of the layer's outputs, E[||(W - Q - B A) x||^2].

With C = E[x x^T] = V D V^T this is ||(W - Q - B A) V D^(1/2)||^2, so B A' is the nearest matrix of rank r to
(W - Q) V D^(1/2), and A = A' D^(-1/2) V^T. Directions that the inputs do not have (D = 0) are left as they are.
With more than one of `rounds` the base is quantized again beneath the correction, as in LoftQ but in this norm.
Source: Liu et al. 2024, arXiv 2410.21271; the square root of C in place of V D^(1/2) gives the same product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor
from quant.init.base import Init, Norm, alternate

__all__ = ["EoRA"]

NOISE = 1e-6  # of the largest eigenvalue: what float32 sums cannot tell from zero


@dataclass(frozen=True)
class EoRA(Init):
    """`rounds` alternations at most; 1 is the method of the paper."""

    rounds: int = 1

    source = "Liu et al. 2024 (EoRA), arXiv 2410.21271"
    idea = "the adapter corrects the quantized base where the inputs are large"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"second_moment"})

    def _start(
        self, weight: Tensor, quantize: Callable[[Tensor], QuantizedTensor], calibration: Calibration | None, rank: int
    ) -> tuple[QuantizedTensor, Tensor, Tensor]:
        assert calibration is not None
        assert calibration.second_moment is not None
        return alternate(weight, quantize, output_norm(calibration.second_moment.to(weight)), rank, self.rounds)


def output_norm(second_moment: Tensor) -> Norm:
    """||E C^(1/2)|| for `second_moment` C [k, k], which may be singular."""
    values, vectors = torch.linalg.eigh(second_moment)
    kept = values > NOISE * values[-1].clamp(min=0)
    root, seen = values[kept].sqrt(), vectors[:, kept]
    return Norm(right=seen * root, right_inverse=(seen / root).T)
