"""Errors of block-absmax quantizers on N(0, 1) against constants computed from their definitions with 16.8 M samples.

The tolerance is statistical: the mean over blocks may leave the constant by 4.5 standard errors of that mean (1 in
150,000 by chance, and the seed is fixed), plus the last printed digit and the error of the constant's own 16.8 M
samples (half ours at 4.2 M). The standard error itself must be below 0.2 %, so a wrong table cannot hide in it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant.core import Quantizer
from quant.methods.double import DynamicMap
from quant.methods.fp4 import FP4, MXFP4
from quant.methods.nf4 import NF
from quant.methods.uniform import Uniform

METHODS = {
    "nf4": NF(),
    "fp4-bnb": FP4("bnb", scale="float32"),
    "e2m1": FP4("e2m1", scale="float32"),
    "int4": Uniform(4, scale="float32"),
    "int4-asym": Uniform(4, zero="float", scale="float32"),
    "nf2": NF(2),
    "nf3": NF(3),
    "nf5": NF(5),
    "mxfp4": MXFP4(),
}
ERRORS = [  # method, group, mean squared error, mean absolute error
    ("nf4", 32, 0.007617, 0.067712),
    ("nf4", 64, 0.008453, 0.072764),
    ("nf4", 128, 0.009136, 0.076835),
    ("fp4-bnb", 32, 0.013021, 0.088903),
    ("fp4-bnb", 64, 0.014866, 0.096534),
    ("fp4-bnb", 128, 0.016536, 0.102956),
    ("e2m1", 32, 0.010212, 0.075471),
    ("e2m1", 64, 0.011168, 0.080256),
    ("e2m1", 128, 0.011849, 0.083795),
    ("int4", 32, 0.009406, 0.081203),
    ("int4", 64, 0.011576, 0.091282),
    ("int4", 128, 0.013761, 0.100242),
    ("int4-asym", 32, 0.006112, 0.064674),
    ("int4-asym", 64, 0.008030, 0.075703),
    ("int4-asym", 128, 0.009949, 0.085164),
    ("nf2", 32, 0.26689, None),
    ("nf2", 64, 0.31833, None),
    ("nf2", 128, 0.36438, None),
    ("nf3", 32, 0.03349, None),
    ("nf3", 64, 0.03895, None),
    ("nf3", 128, 0.04396, None),
    ("nf5", 64, 0.00243, None),
    ("mxfp4", 32, 0.013214, None),
]


@pytest.fixture(scope="module")
def normal() -> Tensor:
    return torch.randn(4096, 1024, generator=torch.Generator().manual_seed(20))


def digit(value: float) -> float:
    """Half a unit of the last printed digit: two to six digits after the point carry a constant."""
    text = f"{value:.6f}".rstrip("0")
    return 0.5 * 10.0 ** -(len(text) - 2)


@pytest.mark.parametrize(("name", "group", "mse", "mae"), ERRORS)
def test_error_on_normal_weights(normal: Tensor, name: str, group: int, mse: float, mae: float | None):
    quantizer = METHODS[name]
    settings = {**vars(quantizer), "group": group}
    method: Quantizer = type(quantizer)(**settings)
    cells = (method.quantize(normal).decode() - normal).reshape(-1, group)
    for want, per_block in ((mse, cells.square().mean(1)), (mae, cells.abs().mean(1))):
        if want is None:
            continue
        error = float(per_block.std()) / per_block.numel() ** 0.5
        assert error < 2e-3 * want
        assert abs(float(per_block.mean()) - want) < 4.5 * 1.12 * error + digit(want)


def test_double_quantization_costs_a_part_in_a_thousand_at_most(normal: Tensor):
    """NF4, 64: .008453 -> .008455 on the same weights; most of a weight's error is the table's."""
    plain = (NF().quantize(normal).decode() - normal).square().mean()
    double = (NF(scale=DynamicMap()).quantize(normal).decode() - normal).square().mean()
    assert 0 < double / plain - 1 < 1e-3
