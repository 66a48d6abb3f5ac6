"""Errors of block-absmax quantizers on N(0, 1) against constants computed from their definitions with 16.8 M samples.

The tolerance is statistical: the mean over blocks may leave the constant by 4.5 standard errors of that mean (1 in
150,000 by chance, and the seed is fixed), plus the last printed digit and the error of the constant's own 16.8 M
samples (half ours at 4.2 M). The standard error itself must be below 0.2 %, so a wrong table cannot hide in it; there
are fewer of the larger blocks, 1024 of 4096, but a neighbouring size differs by 10 % there and 0.6 % will do.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from quant.core import Quantizer
from quant.entropy import entropy
from quant.methods import gguf
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
    "mxfp4-ceil": MXFP4(rounding="ceil"),
}
BLOCKS = (16, 32, 64, 128, 256, 1024, 4096)
TABLE = {  # mean squared and mean absolute error at these block sizes
    "nf4": (
        "006525 007617 008453 009136 009727 010863 012089",
        "060906 067712 072764 076835 080317 086593 092578",
    ),
    "fp4-bnb": (
        "010869 013021 014866 016536 018129 021358 024901",
        "079152 088903 096534 102956 108711 119341 129665",
    ),
    "e2m1": (
        "008854 010212 011168 011849 012374 013242 014133",
        "068559 075471 080256 083795 086679 091587 096178",
    ),
    "int4": (
        "007251 009406 011576 013761 015943 020328 024797",
        "069536 081203 091282 100242 108341 122836 135916",
    ),
    "int4-asym": (
        "004225 006112 008030 009949 011863 015696 019565",
        "051509 064674 075703 085164 093503 108071 120881",
    ),
    "q4-0": (
        "005750 007377 009006 010638 012280 015598 018997",
        "061692 071711 080352 088016 095012 107573 118948",
    ),
}
ERRORS = [  # method, group, mean squared error, mean absolute error
    *(
        (name, group, float(f"0.{mse}"), float(f"0.{mae}"))
        for name, (squared, absolute) in TABLE.items()
        for group, mse, mae in zip(BLOCKS, squared.split(), absolute.split(), strict=True)
    ),
    ("nf2", 32, 0.26689, None),
    ("nf2", 64, 0.31833, None),
    ("nf2", 128, 0.36438, None),
    ("nf3", 32, 0.03349, None),
    ("nf3", 64, 0.03895, None),
    ("nf3", 128, 0.04396, None),
    ("nf5", 32, 0.00232, None),
    ("nf5", 64, 0.00243, None),
    ("nf5", 128, 0.00248, None),
    ("mxfp4", 32, 0.013214, None),
    ("mxfp4-ceil", 32, 0.013310, None),
]
NF4_ENTROPIES = dict(zip(BLOCKS, (3.991, 3.947, 3.884, 3.817, 3.751, 3.628, 3.520), strict=True))


@pytest.fixture(scope="module")
def normal() -> Tensor:
    return torch.randn(1024, 4096, generator=torch.Generator().manual_seed(20))


def digit(value: float) -> float:
    """Half a unit of the last printed digit: two to six digits after the point carry a constant."""
    text = f"{value:.6f}".rstrip("0")
    return 0.5 * 10.0 ** -(len(text) - 2)


def within(per_block: Tensor, want: float, half_digit: float) -> None:
    error = float(per_block.std()) / per_block.numel() ** 0.5
    assert error < (2e-3 if per_block.numel() >= 1 << 14 else 6e-3) * want
    assert abs(float(per_block.mean()) - want) < 4.5 * 1.12 * error + half_digit


@pytest.mark.parametrize(("name", "group", "mse", "mae"), ERRORS)
def test_error_on_normal_weights(
    normal: Tensor, monkeypatch: pytest.MonkeyPatch, name: str, group: int, mse: float, mae: float | None
):
    if name == "q4-0":  # the format has one block size, its rule any
        monkeypatch.setattr(gguf, "BLOCK", group)
        method: Quantizer = gguf.Q40()
    else:
        method = dataclasses.replace(METHODS[name], group=group)
    cells = (method.quantize(normal).decode() - normal).reshape(-1, group)
    within(cells.square().mean(1), mse, digit(mse))
    if mae is not None:
        within(cells.abs().mean(1), mae, digit(mae))


@pytest.mark.parametrize(("group", "want"), NF4_ENTROPIES.items())
def test_nf4_uses_fewer_codes_of_larger_blocks(normal: Tensor, group: int, want: float):
    codes = NF(group=group).quantize(normal).unpacked()
    share = codes.flatten().bincount(minlength=16) / codes.numel()
    surprise = -share.log2()[codes.int()].reshape(-1, group).mean(1)  # its mean is the entropy, to first order
    assert entropy(codes) == pytest.approx(float(surprise.mean()), abs=1e-5)  # float32 sums
    within(surprise, want, 5e-4)


def test_double_quantization_costs_a_part_in_a_thousand_at_most(normal: Tensor):
    """NF4, 64: .008453 -> .008455 on the same weights; most of a weight's error is the table's."""
    plain = (NF().quantize(normal).decode() - normal).square().mean()
    double = (NF(scale=DynamicMap()).quantize(normal).decode() - normal).square().mean()
    assert 0 < double / plain - 1 < 1e-3
