"""Error feedback over the grid of another method: scales, zeros and levels are its own, only the codes are chosen anew.

The inner method fits its grid to the whole weight (static groups). Then columns are rounded one by one, those of the
largest inputs first (`act_order`), and each hands its error on to the columns that are still free; see
`quant.feedback`. With independent inputs it is the inner method's rounding to nearest.
Source: Frantar et al. 2022, arXiv 2210.17323; order and static groups as in the authors' code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.feedback import Feedback, check_feedback
from quant.grid import Grid
from quant.methods.kmeans import KMeans
from quant.methods.nf4 import NF
from quant.methods.uniform import Uniform

__all__ = ["GPTQ"]


@dataclass(frozen=True)
class GPTQ(Quantizer):
    """`inner` must store a scalar grid (see `quant.grid`); errors leave a `block` of columns in one product.

    `damp` is the share of the mean diagonal of the second moment that is added to it.
    """

    inner: Quantizer
    act_order: bool = True
    block: int = 128
    damp: float = 0.01

    source = "Frantar et al. 2022 (GPTQ), arXiv 2210.17323"
    idea = "each column's rounding error is made up for by the columns after it"

    def __post_init__(self) -> None:
        check_feedback(self.damp, self.block)

    @property
    def family(self) -> str:
        return self.inner.family

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"second_moment"}

    @property
    def trainable(self) -> tuple[str, ...]:
        return self.inner.trainable

    def for_layers(
        self, weights: Mapping[str, Tensor], calibration: Mapping[str, Calibration] | None = None
    ) -> Mapping[str, Quantizer]:
        inner = self.inner.for_layers(weights, calibration)
        return {name: dataclasses.replace(self, inner=inner[name]) for name in weights}

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        assert calibration is not None
        assert calibration.second_moment is not None
        feedback = Feedback.of(calibration.second_moment.to(weight.device), self.damp, self.act_order)
        grid = Grid.of(self.inner.quantize(feedback.alive(weight), calibration))
        codes = torch.empty(weight.shape[::-1], dtype=torch.uint8, device=weight.device)

        def choose(column: int, w: Tensor) -> Tensor:
            there = slice(column, column + 1)
            found = grid.codes(w[:, None], there)
            codes[column] = found[:, 0]
            return grid.values(found, there)[:, 0]

        feedback.sweep(weight, choose, self.block)
        return grid.store(codes.T)


register("gptq-int4-g64", GPTQ(Uniform(4, 64)))
register("gptq-int3-g64", GPTQ(Uniform(3, 64)))
register("gptq-nf4-g64", GPTQ(NF(4, 64)))
register("gptq-kmeans-3bit-row", GPTQ(KMeans(3, 1)))
