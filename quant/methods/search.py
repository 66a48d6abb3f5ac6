"""The scale of each group by search: the multiple of another method's scale that leaves the least weighted error.

    s = argmin over s' in {low .. high} * s0 of sum_i h_i (w_i - s' q_i)**2        q = codes nearest to w / s'
    s = sum h w q / sum h q**2, and the codes again, as often as `rescale` says and it helps

The importance h is 1 ("even"), w**2 ("square"), the mean square of the input ("inputs") or the Fisher information.
Levels and zero points stay as they are, in units of the scale: an asymmetric range shrinks about its zero. Scales of a
plain dtype are judged as they are stored, so no group is worse than the other method left it.
Source: the scale searches of llama.cpp's block formats, and its importance matrix for "inputs".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, UnsupportedError, register
from quant.grid import Grid
from quant.grouping import decode_scale, store_scale
from quant.methods.double import DynamicMap
from quant.methods.nf4 import NF
from quant.methods.uniform import Uniform
from quant.trial import Trial

__all__ = ["IMPORTANCE", "Searched", "importance_of"]

IMPORTANCE = {"even": "", "square": "", "inputs": "second_moment", "fisher": "fisher"}


@dataclass(frozen=True)
class Searched(Quantizer):
    """`inner` gives the grid; `steps` multiples of its scales from `low` to `high` are tried, then `rescale` rounds."""

    inner: Quantizer
    importance: str = "even"
    steps: int = 31
    low: float = 0.6
    high: float = 1.2
    rescale: int = 2

    source = "llama.cpp: scale searches of its block formats, importance matrix"
    idea = "the scale of each group that leaves the least error, each weight with its importance"

    def __post_init__(self) -> None:
        if self.importance not in IMPORTANCE:
            raise ValueError(f"importance must be one of {', '.join(IMPORTANCE)}, got {self.importance!r}")
        if self.steps < 0 or self.rescale < 0:
            raise ValueError(f"steps and rescale must be 0 or more, got {self.steps} and {self.rescale}")
        if not 0 < self.low <= self.high:
            raise ValueError(f"low and high must be 0 < low <= high, got {self.low} and {self.high}")

    @property
    def family(self) -> str:
        return self.inner.family

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({IMPORTANCE[self.importance]} - {""})

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        found = self.inner.quantize(weight, calibration)
        like = Grid.of(found).like
        stored = like.scale
        if stored is None:
            raise UnsupportedError(f"a scale search needs scales, {type(self.inner).__name__} stores none")
        h = importance_of(weight, self.importance, calibration)
        trial = Trial.of(like, weight, h)
        start = best = decode_scale(stored)
        error = trial.error(best)
        dtype = stored.dtype if isinstance(stored, Tensor) else torch.float32
        for factor in torch.linspace(self.low, self.high, self.steps).tolist():
            best, error = trial.better(best, error, (start * factor).to(dtype).float())
        for _ in range(self.rescale):
            best, error = trial.better(best, error, trial.least_squares(best).to(dtype).float())
        scale = best.to(dtype) if isinstance(stored, Tensor) else store_scale(best, self._how())
        grid = Grid.of(dataclasses.replace(like, scale=scale))
        searched = grid.store(grid.codes(weight))
        if isinstance(stored, Tensor) or _total(searched, weight, h) <= _total(found, weight, h):
            return searched
        return found  # quantizing the scales has cost more than the search has gained

    def _how(self) -> str | Quantizer:
        how: str | Quantizer | None = getattr(self.inner, "scale", None)
        if how is None:
            raise UnsupportedError(f"{type(self.inner).__name__} does not say how its scales are quantized")
        return how


def importance_of(weight: Tensor, importance: str, calibration: Calibration | None) -> Tensor:
    """h [n or 1, k] float32 of `weight` [n, k]; the statistic it is made of must be in `calibration`."""
    if importance == "even":
        return weight.new_ones(1, weight.shape[1])
    if importance == "square":
        return weight.square()
    assert calibration is not None
    if importance == "inputs":
        assert calibration.second_moment is not None
        return calibration.second_moment.diagonal()[None].to(weight)
    assert calibration.fisher is not None
    return calibration.fisher.to(weight)


def _total(made: QuantizedTensor, weight: Tensor, h: Tensor) -> float:
    return float((h * (made.decode() - weight).square_()).sum(dtype=torch.float64))


register("searched-nf4-g64", Searched(NF(scale="float16")))
register("searched-nf4-g64-dq", Searched(NF(scale=DynamicMap())))
register("searched-int4-g64", Searched(Uniform(4, 64)))
register("searched-int3-inputs-g64", Searched(Uniform(3, 64), "inputs"))
