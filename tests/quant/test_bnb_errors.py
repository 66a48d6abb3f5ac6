"""The errors that bitsandbytes holds its own 4-bit kernels to (tests/test_functional.py), held by ours.

They are means over 200 matrices of 1024 x 1024 normal weights: of |error|, and of |error| / |weight|. Ours are over
four such, so the constant has a seventh of our standard error, and the two may differ by 4.5 standard errors of both
and the last printed digit. Below 0.5 % of the constant the standard error hides no other block size.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant.core import Quantizer
from quant.methods.fp4 import FP4
from quant.methods.nf4 import NF

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
ABSOLUTE = {
    "nf4": (0.067746, 0.072798, 0.076831, 0.080337, 0.083547, 0.086610, 0.089592, 0.092547),
    "fp4": (0.088925, 0.096543, 0.102969, 0.108684, 0.114115, 0.119333, 0.124556, 0.129536),
}
RELATIVE = {
    "nf4": (0.189726, 0.203339, 0.215237, 0.226105, 0.236079, 0.245370, 0.254163, 0.262473),
    "fp4": (0.242443, 0.260125, 0.275817, 0.289831, 0.302881, 0.315, 0.326607, 0.337169),
}


@pytest.fixture(scope="module")
def normal() -> Tensor:
    return torch.randn(1024, 4096, generator=torch.Generator().manual_seed(21))


@pytest.mark.parametrize("place", range(len(BLOCKS)), ids=[str(b) for b in BLOCKS])
@pytest.mark.parametrize("kind", ABSOLUTE)
def test_errors_are_those_of_bitsandbytes(normal: Tensor, kind: str, place: int) -> None:
    group = BLOCKS[place]
    method: Quantizer = NF(4, group) if kind == "nf4" else FP4("bnb", group, "float32")
    error = (method.quantize(normal).decode() - normal).abs_()
    for want, cells in ((ABSOLUTE[kind][place], error), (RELATIVE[kind][place], error / (normal.abs() + 1e-8))):
        per_block = cells.reshape(-1, group).mean(1)
        sigma = float(per_block.std()) / len(per_block) ** 0.5
        assert sigma < 5e-3 * want
        assert abs(float(per_block.mean()) - want) < 4.5 * (1 + 4 / 200) ** 0.5 * sigma + 5e-7
