"""Scale search: the published errors on a Gaussian, never worse than what it searches around, exact on small cases."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from quant import METHODS, Calibration, Quantizer, UnsupportedError
from quant.formats import Affine, SignedAffine
from quant.grid import Grid
from quant.grouping import decode_scale, grouped
from quant.methods.double import DynamicMap, Flat
from quant.methods.fp4 import FP4
from quant.methods.gguf import IQ4NL, Q40
from quant.methods.kmeans import KMeans
from quant.methods.nf4 import NF
from quant.methods.search import IMPORTANCE, Searched, importance_of
from quant.methods.uniform import Uniform
from tests.quant.samples import calibration_of, gaussian

INNER: dict[str, Quantizer] = {
    "int4": Uniform(4, 64),
    "int3 with zeros": Uniform(3, 32, "integer"),
    "int4 with float zeros": Uniform(4, 64, "float"),
    "int4 a row": Uniform(4, "channel"),
    "int4 a tensor": Uniform(4, "tensor"),
    "nf4": NF(),
    "fp4": FP4(),
    "q4_0": Q40(),
    "iq4_nl": IQ4NL(),
    "k-means of rows": KMeans(3, 1, 32, "float16"),
    "nf4, double": NF(scale=DynamicMap()),
}


def normal(n: int, k: int) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(0))


# 2**20 weights: the mean of 2**14 groups whose errors spread by about half their mean is within 0.4 % (one sigma)
@pytest.mark.parametrize(
    ("inner", "before", "after"),
    [(NF(), 0.008453, 0.007234), (Uniform(4, 64, scale="float32"), 0.011576, 0.009918)],
    ids=["nf4", "int4"],
)
def test_published_errors_on_a_gaussian(inner: Quantizer, before: float, after: float) -> None:
    w = normal(256, 4096)
    for method, want in ((inner, before), (Searched(inner, steps=61, rescale=0), after), (Searched(inner), after)):
        assert float((method.quantize(w).decode() - w).square().mean()) == pytest.approx(want, rel=0.01)


@dataclass(frozen=True)
class Sixteen(Quantizer):
    """Codes -8 .. 7 times a positive scale, the absmax of 64 at 7."""

    source = "a test"

    @property
    def family(self) -> str:
        return "uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> SignedAffine:
        plain = Uniform(4, 64, scale="float32").quantize(weight)
        assert isinstance(plain, Affine)
        return SignedAffine(**{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)})


def test_the_lowest_code_is_worth_a_tenth_of_the_error_when_scales_are_searched() -> None:
    """.008956 against the .009918 of -7 .. 7, both with 60 to 70 candidates a group."""
    w = normal(1024, 4096)
    cells = (Searched(Sixteen(), steps=65, rescale=0).quantize(w).decode() - w).reshape(-1, 64).square().mean(1)
    sigma = float(cells.std()) / len(cells) ** 0.5
    assert sigma < 2e-3 * 0.008956
    assert abs(float(cells.mean()) - 0.008956) < 4 * sigma


@pytest.mark.parametrize("importance", sorted(IMPORTANCE))
@pytest.mark.parametrize("name", sorted(INNER))
def test_no_group_is_worse_than_before_in_the_error_that_is_searched(name: str, importance: str) -> None:
    w, inner = gaussian(24, 200), INNER[name]
    known = calibration_of(24, 200)
    h = importance_of(w, importance, known)
    plain, searched = inner.quantize(w), Searched(inner, importance).quantize(w, known)
    group = getattr(plain, "group", "channel")
    error = [grouped(h * (q.decode() - w).square(), group).double().sum(-1) for q in (plain, searched)]
    assert searched.nbytes == plain.nbytes
    assert error[1].sum() < error[0].sum()
    if not isinstance(getattr(inner, "scale", None), Quantizer):  # their 8-bit codes are shared by many groups
        assert bool((error[1] <= error[0] * (1 + 1e-5)).all())


def test_each_group_takes_the_best_of_all_candidates() -> None:
    """By brute force over candidates and codes."""
    w, inner = gaussian(6, 40), Uniform(3, 8, scale="float32")
    method = Searched(inner, "square", steps=7, rescale=0)
    got = method.quantize(w)
    start = decode_scale(inner.quantize(w).scale)[..., None]
    cells, h = grouped(w, 8), grouped(w.square(), 8)
    errors = []
    for factor in [1.0, *torch.linspace(0.6, 1.2, 7).tolist()]:
        values = start[..., None] * factor * torch.arange(-3, 4)
        errors.append((h * (cells[..., None] - values).square().amin(-1)).sum(-1))
    want = torch.stack(errors).amin(0)
    torch.testing.assert_close((h * (grouped(got.decode(), 8) - cells).square()).sum(-1), want, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("importance", ["even", "square"])
def test_a_scale_after_least_squares_is_that_of_its_codes(importance: str) -> None:
    """With many rounds nothing is left to gain: s = sum h w q / sum h q**2 where the rounds could still move."""
    w = normal(16, 256)
    q = Searched(Uniform(4, 64, scale="float32"), importance, rescale=50).quantize(w)
    scale = decode_scale(q.scale)
    whole = grouped(q.unpacked().float() - 8, 64)
    h = grouped(importance_of(w, importance, None), 64)
    best = (h * grouped(w, 64) * whole).sum(-1) / (h * whole.square()).sum(-1)
    torch.testing.assert_close(scale, best, rtol=3e-4, atol=0)


def test_importance_moves_the_error_where_it_does_not_matter() -> None:
    w = normal(32, 256)
    h = torch.where(torch.arange(256) % 4 == 0, 100.0, 0.01)
    known = Calibration(torch.diag(h), None, None, 1)
    even, weighted = Searched(Uniform(3, 64)), Searched(Uniform(3, 64), "inputs")
    errors = [(m.quantize(w, known).decode() - w).square() for m in (even, weighted)]
    assert errors[1][:, ::4].mean() < 0.8 * errors[0][:, ::4].mean()
    assert errors[1].mean() > errors[0].mean()


def test_columns_that_do_not_matter_at_all_change_nothing() -> None:
    w = normal(8, 128)
    known = Calibration(torch.zeros(128, 128), None, None, 1)
    inner = Uniform(4, 64)
    assert torch.equal(Searched(inner, "inputs").quantize(w, known).decode(), inner.quantize(w).decode())


def test_levels_and_zeros_are_kept() -> None:
    w = normal(8, 128)
    plain, searched = (m.quantize(w) for m in (Uniform(4, 64, "integer"), Searched(Uniform(4, 64, "integer"))))
    assert torch.equal(plain.zero.decode(), searched.zero.decode())
    assert not torch.equal(plain.scale, searched.scale)
    grid = Grid.of(searched)
    assert torch.equal(grid.codes(w), searched.unpacked())


@pytest.mark.parametrize("inner", [METHODS["prune-50"], Flat(NF()), KMeans(4)], ids=["mask", "flat", "no scale"])
def test_what_has_no_scales_by_group_is_refused(inner: Quantizer) -> None:
    with pytest.raises(UnsupportedError, match=r"is no scalar grid|stores none"):
        Searched(inner).quantize(normal(4, 64))


@pytest.mark.parametrize("change", [{"importance": "hessian"}, {"steps": -1}, {"low": 0.0}, {"low": 2.0}])
def test_bad_settings_fail_at_construction(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(Searched(NF()), **change)
