"""W8A8: x is rounded a row at a time, wherever the weight is used; smoothing makes up for outlier channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.adapt import decoded_model
from quant import METHODS, Calibration, QuantizedLinear, quantize_model
from quant.engines import ENGINES
from quant.formats import RoundedInputs, Scaled
from quant.formats.rounded import round_rows
from quant.methods.smooth import W8A8, Smooth
from quant.methods.uniform import Uniform
from tests.quant.samples import calibration_of, gaussian, inputs

N, K = 24, 128


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_x_are_rounded_to_half_a_step_and_keep_their_maximum(bits: int) -> None:
    x = inputs(50, K)
    got, top = round_rows(x, bits), x.abs().amax(-1)
    step = top / (2 ** (bits - 1) - 1)
    assert bool(((got - x).abs() <= step[:, None] * 0.5001).all())
    torch.testing.assert_close(got.abs().amax(-1), top, rtol=1e-6, atol=0)
    whole = got / step[:, None]
    assert float((whole - whole.round()).abs().max()) < 1e-4
    assert float((got - x).abs().max()) > 0


def test_rounding_is_that_of_the_kernel() -> None:
    """The reference of the kernel for whole numbers, on a weight that is the identity."""
    from kernels.w8a8 import matmul_reference

    x = inputs(9, K)
    x[3] = 0
    codes = (128 + torch.eye(K)).to(torch.uint8)
    want = matmul_reference(x, codes, torch.ones(1, 1), group="tensor")
    torch.testing.assert_close(round_rows(x, 8), want, rtol=1e-6, atol=0)
    assert not round_rows(x, 8)[3].any()
    x[5, 7] = float("inf")
    assert round_rows(x, 8)[5].isnan().all()


@pytest.mark.parametrize("name", ["w8a8", "smooth-w8a8"])
def test_a_decoded_model_rounds_x_as_the_packed_one_does(name: str) -> None:
    dense = nn.Sequential(nn.Linear(K, N))
    packed = quantize_model(dense, METHODS[name], calibration={"0": calibration_of(N, K)})
    plain, decoded = decoded_model(packed)
    x = inputs(20, K, 3)
    with torch.no_grad():
        assert relative(plain(x), packed(x)) < 1e-6
        without = nn.functional.linear(x, decoded["0"], dense[0].bias)
        assert relative(packed(x), without) > 1e-3  # and that is not the product without it
    x.requires_grad_()
    plain(x).sum().backward()
    torch.testing.assert_close(x.grad, decoded["0"].sum(0).expand(20, K))
    assert type(decoded_model(quantize_model(dense, METHODS["uniform-int8-channel"]))[0][0]) is nn.Linear


def test_smoothing_makes_up_for_outlier_channels() -> None:
    w, known = gaussian(64, K), calibration_of(64, K)
    x = inputs(300, K, 5)  # every sixteenth column is ten times the others
    x[:, ::16] *= 10
    known = Calibration(None, x.abs().mean(0), None, 300)
    want = x.double() @ w.double().T
    errors = [relative(QuantizedLinear(METHODS[m].quantize(w, known), None)(x), want) for m in ("w8a8", "smooth-w8a8")]
    assert errors[1] < 0.5 * errors[0]


def test_factors_are_the_formula() -> None:
    w, known = gaussian(N, K), calibration_of(N, K)
    q = Smooth(alpha=0.3).quantize(w, known)
    assert isinstance(q, Scaled)
    assert known.magnitude is not None
    s = known.magnitude**0.3 / w.abs().amax(0) ** 0.7
    ratio = q.columns[0].float() * s
    assert float(ratio.std() / ratio.mean()) < 1e-3  # float16; one factor for all columns is free
    want = Uniform(8, "channel").quantize(w / q.columns.float()).decode() * q.columns.float()
    assert torch.equal(q.decode(), want)


def test_dead_columns_of_either_side_decide_nothing() -> None:
    w, known = gaussian(N, K), calibration_of(N, K)
    w[:, 3] = 0
    assert known.magnitude is not None
    known.magnitude[9] = 0
    q = METHODS["smooth-w8a8"].quantize(w, known)
    assert relative(q.decode(), w) < 0.03  # smoothing widens the range of a row about threefold
    none = Calibration(None, torch.zeros(K), None, 1)
    assert relative(METHODS["smooth-w8a8"].quantize(w, none).decode(), w) < 0.01


def test_what_is_stored_and_which_engine_takes_it() -> None:
    w = gaussian(64, 256)
    q = METHODS["w8a8"].quantize(w)
    assert isinstance(q, RoundedInputs)
    assert q.bits_per_weight == 8 + 16 / 256
    assert "runs on a GPU" in ENGINES["w8a8"].refuses(q, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match="bits of x"):
        W8A8(bits=9)
    with pytest.raises(ValueError, match="alpha"):
        Smooth(alpha=1.5)


def test_the_kernels_engine_is_the_product_with_the_rounded_rows() -> None:
    """Through its reference, which is what a device without Triton runs."""
    q = METHODS["w8a8"].quantize(gaussian(N, K))
    x = inputs(7, K)
    got = ENGINES["w8a8"].prepare(q, torch.float32).matmul(x)
    assert relative(got, round_rows(x, 8).double() @ q.decode().double().T) < 1e-6
