"""LoftQ: Q = q(W - B A) and B A = the nearest matrix of rank r to W - Q in turn, from B A = 0, at most `rounds` times.

Each half step minimises ||W - Q - B A|| if q chooses the nearest values; grids whose scales follow the weight need not,
so the alternation ends when the error rises. The first round already is the best correction of q(W).
Source: Li et al. 2023, arXiv 2310.08659, algorithm 1, with 5 rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from quant.core import Calibration, QuantizedTensor
from quant.init.base import PLAIN, Init, alternate

__all__ = ["LoftQ"]


@dataclass(frozen=True)
class LoftQ(Init):
    """`rounds` alternations at most."""

    rounds: int = 5

    source = "Li et al. 2023 (LoftQ), arXiv 2310.08659"
    idea = "quantize what the adapter leaves, correct what the quantizer leaves, in turn"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")

    def _start(
        self, weight: Tensor, quantize: Callable[[Tensor], QuantizedTensor], calibration: Calibration | None, rank: int
    ) -> tuple[QuantizedTensor, Tensor, Tensor]:
        return alternate(weight, quantize, PLAIN, rank, self.rounds)
