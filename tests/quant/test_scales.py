"""How scales are stored is a setting of every grouped method: bits, error and range of each form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant import UnsupportedError
from quant.core import Quantizer
from quant.formats import E8M0
from quant.grouping import decode_scale, store_scale
from quant.lloyd_max import AbsmaxRatio, moments
from quant.methods.bof4 import BOF
from quant.methods.double import DynamicMap, Flat
from quant.methods.fp4 import FP4
from quant.methods.gaussian import LloydMax
from quant.methods.kmeans import KMeans
from quant.methods.nf4 import NF
from quant.methods.powers import AdditivePowerOfTwo
from quant.methods.uniform import Uniform

INT8 = Flat(Uniform(8, 256, scale="float32"))
FORMS: dict[str, tuple[str | Quantizer, float, float]] = {  # scale, bits of NF4 b64, error over that of float32
    "float32": ("float32", 4.5, 1.0),
    "float16": ("float16", 4.25, 1.0),
    "bfloat16": ("bfloat16", 4.25, 1.0),
    "e4m3": ("e4m3", 4.125, 1.0072),
    "e8m0": ("e8m0", 4.125, 1.623),
    "int8": (INT8, 4 + 8 / 64 + 32 / (64 * 256), 1.0003),
    "dynamic": (DynamicMap(), 4 + 8 / 64 + 32 / (64 * 256), 1.0001),
}
METHODS = {
    "uniform": lambda scale: Uniform(4, 64, scale=scale),
    "uniform-zero": lambda scale: Uniform(4, 64, "integer", scale),
    "nf3": lambda scale: NF(3, 64, scale, "stored"),
    "fp4": lambda scale: FP4("e2m1", 64, scale),
    "bof4": lambda scale: BOF(4, 64, scale),
    "lloyd-max": lambda scale: LloydMax(64, scale),
    "apot": lambda scale: AdditivePowerOfTwo(4, 64, scale),
    "kmeans": lambda scale: KMeans(4, 0, 64, scale),
}


@pytest.fixture(scope="module")
def normal() -> Tensor:
    return torch.randn(2048, 1024, generator=torch.Generator().manual_seed(20))


@pytest.fixture(scope="module")
def plain(normal: Tensor) -> float:
    """Squared error of NF4 with 64 weights to a float32 scale; .008453 by 16.8 M samples."""
    error = float((NF().quantize(normal).decode() - normal).square().mean())
    assert error == pytest.approx(0.008453, rel=3e-3)  # 2 M samples: standard error 8e-4 relative
    return error


@pytest.mark.parametrize("form", FORMS)
def test_bits_and_error_of_nf4_under_every_form(normal: Tensor, plain: float, form: str) -> None:
    scale, bits, factor = FORMS[form]
    stored = NF(4, 64, scale, "stored").quantize(normal)
    assert stored.bits_per_weight == pytest.approx(bits, abs=1e-12)
    error = float((stored.decode() - normal).square().mean())
    assert error / plain == pytest.approx(factor, rel=0.01 * (factor - 1) + 1e-4)  # the same weights: little chance


@pytest.mark.parametrize("form", ["e4m3", "e8m0"])
def test_coarse_scales_need_codes_chosen_against_them(normal: Tensor, form: str) -> None:
    w = normal[:256]
    stored, original = (
        float((NF(4, 64, form, a).quantize(w).decode() - w).square().mean()) for a in ("stored", "original")
    )
    assert stored < 0.97 * original


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_every_grouped_method_takes_every_form(method: str, form: str) -> None:
    w = torch.randn(32, 256, generator=torch.Generator().manual_seed(1)) * 0.05
    w[5] = 0
    exact, stored = (METHODS[method](s).quantize(w) for s in ("float32", FORMS[form][0]))
    error, best = (float((q.decode() - w).square().sum()) for q in (stored, exact))
    assert error < (2.1 if form == "e8m0" else 1.05) * best
    if method not in ("kmeans", "lloyd-max"):  # their tables hold no zero
        assert not stored.decode()[5].any()
    assert stored.bits_per_weight <= exact.bits_per_weight


def test_power_of_two_scales_are_the_nearest() -> None:
    scale = torch.tensor([[1.0, 1.49, 1.5, 3.1, 0.74, 2.0**-90, 0.0]])
    assert decode_scale(store_scale(scale, "e8m0")).tolist() == [[1.0, 1.0, 2.0, 4.0, 0.5, 2.0**-90, 2.0**-127]]
    powers = torch.tensor(2.0) ** torch.arange(-20, 20)
    rough = torch.rand(1, 500, generator=torch.Generator().manual_seed(2)) * 100 + 1e-3
    best = (rough[..., None] - powers).abs().amin(-1)
    torch.testing.assert_close((E8M0.nearest(rough).decode() - rough).abs(), best)


def test_a_negative_scale_has_no_power_of_two_but_an_e4m3_number() -> None:
    with pytest.raises(UnsupportedError, match="no sign"):
        store_scale(torch.tensor([[1.0, -1.0]]), "e8m0")
    assert decode_scale(store_scale(torch.tensor([[1.0, -1.0]]), "e4m3")).tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("form", ["e4m3", "e8m0"])
def test_scales_of_any_size_are_held(form: str) -> None:
    for size in (2.0**-90, 2.0**90):
        w = torch.randn(4, 128, generator=torch.Generator().manual_seed(3)) * size
        decoded = NF(4, 64, form, "stored").quantize(w).decode()
        assert (decoded / size - w / size).norm() < 0.2 * (w / size).norm()


@pytest.mark.parametrize(
    ("bits", "errors"),
    [(2, (0.26689, 0.31833, 0.36438)), (3, (0.03349, 0.03895, 0.04396)), (5, (0.00232, 0.00243, 0.00248))],
)
def test_error_of_quantiles_by_quadrature_is_that_of_many_samples(bits: int, errors: tuple[float, ...]) -> None:
    for block, want in zip((32, 64, 128), errors, strict=True):
        assert exact(bits, block) == pytest.approx(want, rel=1e-3, abs=5.1e-6)  # the last digit


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("block", [32, 64, 256])
def test_quantiles_of_any_bits_and_block(normal: Tensor, bits: int, block: int) -> None:
    cells = (NF(bits, block).quantize(normal[:1024]).decode() - normal[:1024]).view(-1, block).square().mean(1)
    error = float(cells.std()) / len(cells) ** 0.5
    assert abs(float(cells.mean()) - exact(bits, block)) < 4.5 * error
    assert error < 1.2e-2 * exact(bits, block)  # of eight bits most of the error is that of the few wide steps


def exact(bits: int, block: int) -> float:
    """Mean squared error of NF on N(0, 1) by quadrature; the largest of a block is exact."""
    levels = NF(bits).levels.double().numpy()
    return moments(AbsmaxRatio(block), levels)[2] * (block - 1) / block
