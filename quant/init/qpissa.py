"""QPiSSA: the adapter holds the principal part of the weight, B A = the nearest matrix of rank r to W; Q = q(W - B A).

What is quantized is smaller, and without the large directions. With `rounds` the two then alternate as in LoftQ, from
this other beginning: B A = the nearest to W - Q, Q = q(W - B A); the nearest pair is kept.
Source: Meng et al. 2024 (PiSSA), arXiv 2404.02948, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from quant.core import Calibration, QuantizedTensor
from quant.init.base import PLAIN, Init

__all__ = ["QPiSSA"]


@dataclass(frozen=True)
class QPiSSA(Init):
    """`rounds` further alternations, ended when the error rises."""

    rounds: int = 0

    source = "Meng et al. 2024 (PiSSA), arXiv 2404.02948"
    idea = "the adapter takes the principal part of the weight, the rest is quantized"

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds must not be negative, got {self.rounds}")

    def _start(
        self, weight: Tensor, quantize: Callable[[Tensor], QuantizedTensor], calibration: Calibration | None, rank: int
    ) -> tuple[QuantizedTensor, Tensor, Tensor]:
        b, a = PLAIN.best(weight, rank)
        base = quantize(weight - b @ a)
        error = PLAIN.of(weight - base.decode() - b @ a)
        for _ in range(self.rounds):
            new_b, new_a = PLAIN.best(weight - base.decode(), rank)
            again = quantize(weight - new_b @ new_a)
            rest = PLAIN.of(weight - again.decode() - new_b @ new_a)
            if not rest < error:
                break
            base, b, a, error = again, new_b, new_a, rest
        return base, b, a
