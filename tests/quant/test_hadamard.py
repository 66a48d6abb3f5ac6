"""The Hadamard rotation: the transform, the weight that is stored under it, and what it does to any method."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard as scipy_hadamard

from quant import METHODS, QuantizedLinear, UnsupportedError
from quant.core import Calibration
from quant.formats import Rotated
from quant.hadamard import group_of, transformed
from quant.methods.none import Unquantized
from quant.methods.rotated import Hadamard
from quant.methods.uniform import Uniform
from tests.quant.samples import calibration_of, gaussian, inputs

EXACT = Unquantized("float32")


@pytest.mark.parametrize("group", [1, 2, 8, 32, 64, 512, 1024])
def test_transform_is_the_matrix_of_scipy_and_its_own_inverse(group: int) -> None:
    x = gaussian(3, 2 * group).double()
    want = x.view(3, 2, group) @ torch.from_numpy(scipy_hadamard(group) / np.sqrt(group))
    torch.testing.assert_close(transformed(x, group), want.view(3, -1), rtol=1e-6, atol=1e-8)  # H in float32
    torch.testing.assert_close(transformed(transformed(x, group), group), x, rtol=1e-6, atol=1e-8)


def test_groups_are_the_largest_power_of_two_that_divides_the_columns() -> None:
    assert [group_of(k) for k in (576, 1536, 4096, 11008, 896, 7)] == [64, 512, 1024, 256, 128, 1]
    assert group_of(4096, 128) == 128


@pytest.mark.parametrize("k", [8, 576, 2048])
def test_decoding_inverts_the_rotation(k: int) -> None:
    w = gaussian(6, k)
    stored = Hadamard(EXACT).quantize(w)
    torch.testing.assert_close(stored.decode(), w, rtol=0, atol=2e-7)  # sums of float32
    assert not torch.allclose(stored.inner.decode(), w, atol=0.01)


@pytest.mark.parametrize("engine", ["auto", "around", "tiled", "dense"])
@pytest.mark.parametrize("inner", ["nf4-g64-dq", "uniform-int4-g64", "kmeans-4bit-row"])
def test_product_and_gradient_are_those_of_the_decoded_weight(engine: str, inner: str) -> None:
    stored = Hadamard(METHODS[inner]).quantize(gaussian(24, 576))
    assert stored.group == 64
    layer = QuantizedLinear(stored, None, engine)
    x = gaussian(5, 576, seed=1).requires_grad_()
    dy = gaussian(5, 24, seed=2)
    y = layer(x)
    torch.testing.assert_close(y, x @ stored.decode().T, rtol=1e-4, atol=1e-6)
    y.backward(dy)
    torch.testing.assert_close(x.grad, dy @ stored.decode(), rtol=1e-4, atol=1e-6)


def test_error_of_the_weight_is_that_of_the_rotated_weight() -> None:
    w = gaussian(16, 512) ** 3
    method = Hadamard(Uniform(3, 64))
    stored = method.quantize(w)
    signs, group = method.rotation(512)
    inner = (stored.inner.decode() - transformed(w * signs, group)).square().sum()
    torch.testing.assert_close((stored.decode() - w).square().sum(), inner, rtol=1e-5, atol=0)  # orthogonal


def test_outliers_are_spread() -> None:
    w = gaussian(64, 1024)
    w[:, ::50] *= 20
    plain, rotated = (q.quantize(w).decode() - w for q in (Uniform(4, 64), Hadamard(Uniform(4, 64))))
    assert rotated.square().sum() < 0.4 * plain.square().sum()


def test_the_second_moment_that_the_inner_method_sees_is_of_the_rotated_inputs() -> None:
    seen: list[Calibration] = []

    @dataclasses.dataclass(frozen=True)
    class Spy(Uniform):
        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"second_moment"})

        def _quantize(self, weight, calibration):
            seen.append(calibration)
            return super()._quantize(weight, calibration)

    x = inputs(500, 192)
    method = Hadamard(Spy())
    assert method.needs == {"second_moment"}
    method.quantize(gaussian(8, 192), Calibration(second_moment=x.T @ x / len(x)))
    signs, group = method.rotation(192)
    assert group == 64
    rotated = transformed(x * signs, group)
    torch.testing.assert_close(seen[0].second_moment, rotated.T @ rotated / len(x), rtol=1e-4, atol=1e-3)


def test_the_seed_decides_the_signs() -> None:
    w = gaussian(8, 64)
    one, same, other = (Hadamard(EXACT, seed=s).quantize(w) for s in (1, 1, 2))
    assert torch.equal(one.signs, same.signs)
    assert not torch.equal(one.signs, other.signs)


def test_signs_cost_one_bit_a_column() -> None:
    stored = Hadamard(METHODS["uniform-int4-g64"]).quantize(gaussian(24, 128))
    assert stored.nbytes == stored.inner.nbytes + 128 // 8


def test_settings_and_shapes_are_checked() -> None:
    for size in (0, 4, 48):
        with pytest.raises(ValueError, match="size"):
            Hadamard(size=size)
    with pytest.raises(ValueError, match="the fisher of rotated inputs"):
        Hadamard(METHODS["squeezellm-4bit"])
    with pytest.raises(UnsupportedError, match="100 columns have no groups of 8"):
        Hadamard(EXACT).quantize(gaussian(4, 100))
    inner = EXACT.quantize(gaussian(4, 24))
    signs = torch.zeros(1, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="power of two that divides 24, got 16"):
        Rotated((4, 24), torch.float32, inner, signs, 16)
    with pytest.raises(ValueError, match="inner weight must be"):
        Rotated((4, 32), torch.float32, inner, signs, 8)


def test_a_calibration_without_a_second_moment_passes() -> None:
    known = dataclasses.replace(calibration_of(8, 64), second_moment=None)
    assert Hadamard(EXACT).quantize(gaussian(8, 64), known).shape == (8, 64)
