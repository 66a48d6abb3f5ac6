"""The best even grids for normal weights, found by our own scale search over the density itself instead of a sample.

The weights are a fine even comb of values and the importance of each is the density there, so that the weighted sum of
squares is the integral of the error. With N(0, 1) cut at 8 and 2**18 values the integral is right to 1e-8: what lies
beyond is 1e-15, and a cell boundary between two values errs by the square of their distance, 6e-5. Grids of 2**b levels
about zero: Max 1960, IRE Trans. Inf. Theory 6(1), which prints .3634 .1188 .03744 .01154 .00349 and these steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from kernels.packing import pack
from quant import Calibration, QuantizedTensor, Quantizer
from quant.formats import Affine
from quant.grid import Grid
from quant.grouping import decode_scale
from quant.lloyd_max import Normal, moments
from quant.methods.search import Searched
from quant.methods.uniform import Uniform

OPTIMA = [  # bits, squared error, step
    (1, 0.363380, 1.595769),
    (2, 0.118846, 0.995687),
    (3, 0.037440, 0.586019),
    (4, 0.011543, 0.335201),
    (5, 0.003495, 0.188139),
]


def density() -> tuple[Tensor, Tensor]:
    """Values [1, 2**18] between -8 and 8, symmetric about zero, and the share of N(0, 1) that each stands for."""
    x = (torch.arange(1 << 18, dtype=torch.float64)[None] + 0.5) * (16 / (1 << 18)) - 8
    share = torch.exp(-x.square() / 2)
    return x.float(), (share / share.sum()).float()


def mean_square(got: Tensor, x: Tensor, share: Tensor) -> float:
    return float((share.double() * (got.double() - x.double()).square()).sum())


@dataclass(frozen=True)
class Even(Quantizer):
    """2**bits levels at odd multiples of half a step about zero, the step given: `Affine` with its zero between two."""

    bits: int
    step: float
    source = "a test"

    @property
    def family(self) -> str:
        return "uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        codes = pack(torch.zeros(n, k, dtype=torch.uint8), self.bits)
        zero = torch.tensor([[((1 << self.bits) - 1) / 2]])
        like = Affine((n, k), torch.float32, codes, torch.tensor([[self.step]]), zero, self.bits, "tensor")
        grid = Grid.of(like)
        return grid.store(grid.codes(weight))


@pytest.mark.parametrize(("bits", "want", "step"), OPTIMA)
def test_the_error_at_the_optimal_step(bits: int, want: float, step: float) -> None:
    x, share = density()
    at = {f: mean_square(Even(bits, step * f).quantize(x).decode(), x, share) for f in (0.99, 1.0, 1.01)}
    assert at[1.0] == pytest.approx(want, abs=5.1e-7)  # six digits given
    assert at[1.0] < min(at[0.99], at[1.01])


@pytest.mark.parametrize(("bits", "want", "step"), OPTIMA)
def test_the_search_of_scales_finds_the_optimal_step(bits: int, want: float, step: float) -> None:
    x, share = density()
    method = Searched(Even(bits, 1.5 * step), "fisher", steps=151, low=0.6, high=0.75, rescale=0)
    got = method.quantize(x, Calibration(fisher=share))
    assert isinstance(got, Affine)
    assert float(decode_scale(got.scale)) == pytest.approx(step, rel=1e-3)  # candidates are 1.5e-3 of it apart
    assert mean_square(got.decode(), x, share) == pytest.approx(want, abs=6e-7)


def test_the_best_symmetric_grid_of_fifteen_levels() -> None:
    """One level at zero, the sixteenth code unused: the least of the error's closed form over all steps."""
    x, share = density()
    whole = np.arange(-7.0, 8.0)
    best = minimize_scalar(lambda s: moments(Normal(), s * whole)[2], bounds=(0.25, 0.5), options={"xatol": 1e-9})
    inner = Uniform(4, "tensor", scale="float32")
    got = Searched(inner, "fisher", steps=201, low=0.25, high=0.35, rescale=2).quantize(x, Calibration(fisher=share))
    assert mean_square(got.decode(), x, share) == pytest.approx(best.fun, abs=1e-6)  # candidates are 0.2 % apart
