"""Entropy-coded scalar quantization: an even grid as fine as the rate allows, each cell at the mean of its weights.

    code = round(w / step),   level = mean of the weights of the cell,   rate = bits of the codes as written

At high rate this is the best that coding weights one by one can do, 1.53 dB (pi e / 6) from the bound of any code,
where 2**b levels of equal code length (Lloyd-Max) stay 2.3 dB behind it at 4 bits (Gish and Pierce 1968, IEEE Trans.
Inf. Theory 14(5)). The entropy falls by about one bit when the step doubles, which finds the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.packing import pack
from quant.ans import LANE
from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import Codebook
from quant.formats.coded import CodedCodebook, check_coder
from quant.levels import store_levels

__all__ = ["EntropyCodedUniform"]

Floats = NDArray[np.float32]

CELLS = 256  # a code is a byte: a grid that would fill more cells is too fine
FINEST = 2.0**-12  # of the largest weight
HALVINGS = 18  # of the 13 octaves between the finest and the coarsest step: to 0.0001 bits
SAMPLE = 1 << 20  # weights that the step is sought on
TRIES = 4


@dataclass(frozen=True)
class EntropyCodedUniform(Quantizer):
    """At most `bits` a weight as stored: stream, tables and levels included.

    A weight that is too small for its tables takes more; one whose largest values lie too far out for `CELLS`, less.
    """

    bits: float = 4.0
    coder: str = "ans"

    source = "Gish and Pierce 1968, IEEE Trans. Inf. Theory 14(5)"
    idea = "an even grid, entropy-coded to the rate"

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 8:
            raise ValueError(f"bits must be above 0, up to 8, got {self.bits}")
        check_coder(self.coder)

    @property
    def family(self) -> str:
        return "uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        values = weight.cpu().numpy().ravel()
        sample = values[:: -(-len(values) // SAMPLE)]
        largest = float(np.abs(values).max())
        aim = self.bits
        for _ in range(TRIES):
            stored = _stored(weight, _finest(sample, largest, len(values), aim), self.coder)
            excess = stored.bits_per_weight - self.bits
            if excess <= 0:
                break
            aim -= excess + 1e-4
        return stored


def _finest(values: Floats, largest: float, count: int, aim: float) -> float:
    """The smallest step at which `count` weights like `values` take about `aim` bits each; at worst the coarsest."""
    if largest == 0:
        return 1.0
    low, high = math.log2(largest * FINEST), math.log2(largest * 2)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _bits(values, 2.0**middle, count) > aim else (low, middle)
    return float(2.0**high)


def _bits(values: Floats, step: float, count: int) -> float:
    """About the bits a weight at `step`: entropy, a state a lane, and for each cell two bytes of table and of level."""
    counts = np.bincount(_cells(values, step)[0])
    p = counts[counts > 0] / len(values)
    if len(p) > CELLS:
        return math.inf
    return float(-(p * np.log2(p)).sum()) + 24 / LANE + 32 * (len(p) + 2) / count


def _cells(values: Floats, step: float) -> tuple[NDArray[np.int64], int]:
    """The cell of each of `values`, counted from the lowest, and which that is."""
    cells = np.rint(values / np.float32(step)).astype(np.int64)
    lowest = int(cells.min())
    return cells - lowest, lowest


def _stored(weight: Tensor, step: float, coder: str) -> QuantizedTensor:
    """`weight` [n, k] on the grid of `step`, the cells that hold a weight numbered in order."""
    values = weight.cpu().numpy().ravel()
    cells, _ = _cells(values, step)
    counts = np.bincount(cells)
    used = np.flatnonzero(counts)[:CELLS]
    number = np.zeros(len(counts), np.uint8)
    number[used] = np.arange(len(used))
    codes = torch.from_numpy(number[cells]).view(weight.shape)
    means = np.bincount(cells, values.astype(np.float64))[used] / counts[used] / step
    bits = max(1, (len(used) - 1).bit_length())
    levels = store_levels(torch.from_numpy(means[None]).float(), "float16")
    scale = torch.tensor([[step]], dtype=torch.float32)
    n, k = weight.shape
    codebook = Codebook((n, k), torch.float32, pack(codes, bits), levels, scale, None, bits, "tensor", 0)
    return CodedCodebook.store(codebook, coder).to(weight.device)


for _target in (4, 3, 2):
    register(f"ecsq-{_target}bit", EntropyCodedUniform(_target))
