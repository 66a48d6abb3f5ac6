"""GPTQ: the ratio to rounding that theory gives, every scalar grid, and what it keeps of the method inside."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels.packing import pack
from quant import METHODS, Calibration, Quantizer, UnsupportedError
from quant.formats import Affine
from quant.methods.gptq import GPTQ
from quant.methods.kmeans import KMeans
from quant.methods.prune import Magnitude
from quant.methods.uniform import Uniform
from tests.quant.samples import calibration_of, gaussian, inputs

N, K = 64, 192


@dataclass(frozen=True)
class Wide(Quantizer):
    """Eight bits of one fixed step: nothing is clipped."""

    step: float = 0.1
    source = "a test"

    @property
    def family(self) -> str:
        return "uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> Affine:
        n, k = weight.shape
        codes = (weight / self.step).round() + 128
        scale = torch.tensor([[self.step]])
        return Affine((n, k), torch.float32, pack(codes.to(torch.uint8), 8), scale, None, 8, "tensor")


def loss(got: Tensor, weight: Tensor, h: Tensor) -> float:
    e = (got - weight).double()
    return float(((e @ h.double()) * e).sum())


@pytest.mark.parametrize(("rho", "ratio"), [(0.5, 0.7510), (0.8, 0.3625), (0.9, 0.1932), (0.95, 0.1010)])
def test_ratio_to_rounding_for_autoregressive_inputs(rho, ratio):
    """tr(D) / tr(H) of H = L D L^T, H_ij = rho**|i - j|: ((n - 1)(1 - rho**2) + 1) / n at n = 256."""
    n = 256
    assert ((n - 1) * (1 - rho**2) + 1) / n == pytest.approx(ratio, abs=5e-5)
    place = torch.arange(n)
    h = rho ** (place[:, None] - place).abs().float()
    w = torch.randn(2000, n, generator=torch.Generator().manual_seed(0))
    method = GPTQ(Wide(), act_order=False, damp=0.0)
    got = loss(method.quantize(w, Calibration(h)).decode(), w, h)
    plain = loss(Wide().quantize(w).decode(), w, h)
    # rounding errors of 512 thousand weights: 0.9 / 512000**.5 = 0.13 % each, more where H correlates them
    assert got / plain == pytest.approx(ratio, rel=0.02)


def test_ratio_to_rounding_on_the_absmax_grid_of_each_row():
    """4 bits, rho = .9: .1919 was found by simulation, as here. What is moved beyond a row's maximum is clipped."""
    n, rho = 256, 0.9
    place = torch.arange(n)
    h = rho ** (place[:, None] - place).abs().float()
    w = torch.randn(2000, n, generator=torch.Generator().manual_seed(0))
    inner = Uniform(4, "channel", scale="float32")
    errors = [
        (m.decode() - w).double() for m in (GPTQ(inner, False, damp=0.0).quantize(w, Calibration(h)), inner.quantize(w))
    ]
    got, plain = (((e @ h.double()) * e).sum(1) for e in errors)
    ratio = float(got.sum() / plain.sum())
    sigma = float((got - ratio * plain).std() / plain.mean()) / len(w) ** 0.5  # of a ratio of means; 0.6 % of it
    assert sigma < 0.01 * 0.1919
    assert abs(ratio - 0.1919) < 4 * sigma


GRIDS = [
    "uniform-int4-g64",
    "uniform-int3-g64",
    "uniform-int4-asym-g64",
    "uniform-int4-float-zero-g64",
    "uniform-int4-g64-dq",
    "nf4-g64",
    "nf4-g64-dq",
    "fp4-g64",
    "mxfp4",
    "apot-4bit-g64",
    "kmeans-3bit-row",
    "kmeans-4bit-tensor",
    "quantile-4bit-g64",
    "cluster-16",
]


@pytest.mark.parametrize("inner", GRIDS)
@pytest.mark.parametrize("act_order", [False, True])
def test_over_every_grid_it_loses_less_than_rounding_and_costs_the_same(inner, act_order):
    w, known = gaussian(N, K), calibration_of(N, K)
    plain = METHODS[inner].quantize(w)
    q = GPTQ(METHODS[inner], act_order).quantize(w, known)
    assert loss(q.decode(), w, known.second_moment) < 0.6 * loss(plain.decode(), w, known.second_moment)
    assert (q.format, q.bits_per_weight) == (plain.format, plain.bits_per_weight)
    assert all(torch.equal(q.stored()[n], t) for n, t in plain.stored().items() if n != "codes")  # static groups


def test_independent_inputs_leave_rounding_to_nearest():
    w = gaussian(N, K)
    h = torch.diag(torch.rand(K, generator=torch.Generator().manual_seed(1)) + 0.1)
    for inner in (Uniform(4, 64), METHODS["nf4-g64"], KMeans(3, 1)):
        assert torch.equal(GPTQ(inner).quantize(w, Calibration(h)).decode(), inner.quantize(w).decode())


def test_large_inputs_first_loses_less_where_few_inputs_carry_most():
    w, known = gaussian(256, K), calibration_of(256, K)
    got = [loss(GPTQ(Uniform(3, 64), o).quantize(w, known).decode(), w, known.second_moment) for o in (True, False)]
    assert got[0] < got[1]


def test_columns_come_back_in_their_place():
    """Permuting the inputs permutes the result: groups are those of a row, so one scale a row keeps them."""
    w, known = gaussian(N, K), calibration_of(N, K)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(2))
    moved = Calibration(known.second_moment[order][:, order])
    method = GPTQ(Uniform(4, "channel"))
    want = method.quantize(w, known).decode()[:, order]
    got = method.quantize(w[:, order], moved).decode()
    # float32 sums in another order may tip a tie and what follows it, in a few rows
    assert float((got != want).any(1).float().mean()) < 0.1


def test_the_block_does_not_matter():
    w, known = gaussian(N, K), calibration_of(N, K)
    want = GPTQ(Uniform(4, 64)).quantize(w, known).decode()
    for block in (1, 7, 4096):
        got = GPTQ(Uniform(4, 64), block=block).quantize(w, known).decode()
        assert float((got != want).any(1).float().mean()) < 0.1


def test_dead_inputs_get_the_value_nearest_to_zero_and_do_not_widen_their_group():
    x = inputs(512, 64)
    x[:, 5] = 0
    w = gaussian(8, 64)
    w[:, 5] = 100.0
    q = GPTQ(Uniform(4, 64)).quantize(w, Calibration(x.T @ x / len(x)))
    assert not q.decode()[:, 5].any()
    rest = [i for i in range(64) if i != 5]
    assert (q.decode() - w)[:, rest].abs().max() < 0.2


def test_fewer_samples_than_columns_and_no_inputs_at_all():
    w = gaussian(16, 96)
    few = calibration_of(16, 96, rows=10)
    assert loss(GPTQ(Uniform(4, 64)).quantize(w, few).decode(), w, few.second_moment) < loss(
        Uniform(4, 64).quantize(w).decode(), w, few.second_moment
    )
    assert not GPTQ(Uniform(4, 64)).quantize(w, Calibration(torch.zeros(96, 96))).decode().any()


def test_what_it_needs_and_refuses():
    method = GPTQ(Uniform(4, 64))
    assert method.needs == {"second_moment"}
    with pytest.raises(ValueError, match="needs the calibration's second_moment"):
        method.quantize(gaussian(4, 8))
    with pytest.raises(UnsupportedError, match="no scalar grid"):
        GPTQ(Magnitude(0.5)).quantize(gaussian(4, 8), calibration_of(4, 8))
    with pytest.raises(ValueError, match="damp"):
        GPTQ(Uniform(4, 64), damp=-1)
    layers = {"a": gaussian(4, 8), "b": gaussian(4, 8)}
    assert method.for_layers(layers) == {"a": method, "b": method}
