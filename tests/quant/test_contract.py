"""What every registered method promises, whatever it does inside. A new method is held to it by being registered."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quant import (
    FAMILIES,
    METHODS,
    PARTS,
    LoRAConfig,
    QuantizedLinear,
    QuantizedTensor,
    UnsupportedError,
    add_lora,
    lora_parameters,
    model_parts,
    quantize_model,
    save_model,
    saved_sizes,
)
from quant.core import from_config
from tests.quant import samples
from tests.quant.samples import calibration_of, quantize

N, K = 24, 128
methods = pytest.mark.parametrize("method", sorted(METHODS))
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def gaussian(n: int = N, k: int = K, seed: int = 0) -> Tensor:
    return samples.gaussian(n, k, seed)


@cache
def quantized(method: str) -> QuantizedTensor:
    return quantize(method, gaussian())


def bits(t: Tensor) -> bytes:
    return t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stored_bits(q: QuantizedTensor | QuantizedLinear) -> dict[str, bytes]:
    return {name: bits(t) for name, t in q.stored().items()}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def seen(q: QuantizedTensor, x: Tensor) -> Tensor:
    """x as the product of `q` takes it: x itself, or rounded to within half a step, max |row| / 254, of x.

    Behind factors that differ by column the step does too; the norm of all errors stays within 2 % of that of x.
    """
    got = q.activations(x)
    assert (got.shape, got.dtype) == (x.shape, x.dtype)
    if q.rounds:
        assert 0 < relative(got, x) < 0.02
    else:
        assert torch.equal(got, x)
    return got


def attempt(method: str, weight: Tensor) -> QuantizedTensor:
    """The quantized weight; a format may refuse a shape or a range, but only as `UnsupportedError` with its reason."""
    try:
        return quantize(method, weight)
    except UnsupportedError as error:
        pytest.skip(f"documented refusal: {error}")


# --- settings -----------------------------------------------------------------------------------------------------


@methods
def test_settings_are_frozen_and_the_source_is_named(method: str) -> None:
    quantizer = METHODS[method]
    assert quantizer.source
    assert quantizer.idea
    assert quantizer.family in FAMILIES
    assert json.loads(json.dumps(quantizer.settings(), allow_nan=False))["quantizer"] == type(quantizer).__name__
    for field in dataclasses.fields(quantizer):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(quantizer, field.name, getattr(quantizer, field.name))


def test_no_two_names_stand_for_the_same_method() -> None:
    for name, quantizer in METHODS.items():
        same = [other for other, q in METHODS.items() if q == quantizer]
        assert same == [name]


# --- values -------------------------------------------------------------------------------------------------------


@methods
@dtypes
def test_shape_and_dtype_survive_and_the_input_is_untouched(method: str, dtype: torch.dtype) -> None:
    weight = gaussian().to(dtype)
    before = bits(weight)
    q = quantize(method, weight)
    assert (q.shape, q.dtype) == ((N, K), dtype)
    assert (q.dequantize().shape, q.dequantize().dtype) == ((N, K), dtype)
    assert q.decode().dtype == torch.float32
    assert bits(weight) == before
    memory = {t.untyped_storage().data_ptr() for t in q.stored().values()}
    assert weight.untyped_storage().data_ptr() not in memory


@methods
def test_error_is_below_the_signal_and_does_not_depend_on_its_size(method: str) -> None:
    weight = gaussian()
    error = relative(quantized(method).decode(), weight)
    assert error < 1
    # 2**-7 is exact in every floating format here; a grid of powers of two may round differently by its own step
    scaled = quantize(method, weight * 2.0**-7).decode() * 2.0**7
    assert relative(scaled, weight) <= 1.1 * error + 1e-6


@methods
def test_zeros_stay_zero(method: str) -> None:
    assert torch.equal(quantize(method, torch.zeros(N, K)).decode(), torch.zeros(N, K))


@methods
def test_same_bytes_twice_and_for_any_strides(method: str) -> None:
    weight = gaussian()
    want = stored_bits(quantize(method, weight))
    assert stored_bits(quantize(method, weight)) == want
    assert stored_bits(quantize(method, weight.t().contiguous().t())) == want
    assert stored_bits(quantize(method, torch.cat([weight, weight], 1)[:, :K])) == want


@methods
@pytest.mark.parametrize("shape", [(1, 1), (3, 65), (17, 130)], ids=str)
def test_odd_shapes(method: str, shape: tuple[int, int]) -> None:
    weight = gaussian(*shape)
    q = attempt(method, weight)
    assert q.decode().shape == shape
    assert torch.isfinite(q.decode()).all()
    assert relative(q.decode(), weight) <= 1
    x = gaussian(2, shape[1], seed=1)
    assert torch.allclose(QuantizedLinear(q, None)(x), q.activations(x) @ q.decode().T, rtol=1e-4, atol=1e-6)


HARD = {
    "constant": torch.full((N, K), 0.7),
    "negative constant": torch.full((N, K), -3.0),
    "huge": gaussian() * 65504 * 20,
    "largest half": torch.full((N, K), 65504.0),
    "tiny": torch.full((N, K), 6e-8),
    "denormal": torch.full((N, K), 1e-41),
    "spike": torch.zeros(N, K).index_put_((torch.tensor(3), torch.tensor(5)), torch.tensor(100.0)),
    "one zero row": gaussian() * (torch.arange(N) != 2)[:, None],
    "signed zeros": torch.where(gaussian() > 0, 0.0, -0.0),
}


@methods
@pytest.mark.parametrize("case", sorted(HARD))
def test_hard_weights_stay_finite_and_within_twice_their_range(method: str, case: str) -> None:
    weight = HARD[case]
    got = attempt(method, weight).decode()
    assert torch.isfinite(got).all()
    assert got.abs().max() <= 2 * weight.abs().max()


@methods
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused_with_its_place(method: str, value: float) -> None:
    weight = gaussian()
    weight[7, 11] = value
    with pytest.raises(ValueError, match=r"not finite.*\[7, 11\]"):
        quantize(method, weight)


# --- size ---------------------------------------------------------------------------------------------------------


@methods
def test_the_reported_size_is_the_stored_size(method: str, tmp_path: Path) -> None:
    q = quantized(method)
    counted = sum(len(b) for b in stored_bits(q).values())
    assert q.nbytes == counted == sum(q.parts().values())
    assert set(q.parts()) <= set(PARTS)
    model = nn.Sequential(QuantizedLinear(q, None))
    assert model_parts(model) == q.parts()
    save_model(model, tmp_path)
    size, header = saved_sizes(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == size == counted + header


@methods
def test_bits_per_weight_is_what_the_bytes_say(method: str) -> None:
    q = quantized(method)
    constants = q.parts().get("constants", 0)
    assert q.bits_per_weight == pytest.approx(8 * (q.nbytes - constants) / (N * K), rel=1e-12)


# --- round trips --------------------------------------------------------------------------------------------------


@methods
def test_configuration_and_stored_tensors_are_the_whole_weight(method: str) -> None:
    q = quantized(method)
    config = json.loads(json.dumps(q.config(), allow_nan=False))
    again = from_config(config, q.stored())
    assert again.config() == q.config()
    assert (again.shape, again.dtype) == (q.shape, q.dtype)
    assert torch.equal(again.decode(), q.decode())
    for name in q.stored():
        with pytest.raises(ValueError):
            from_config(config, {k: t for k, t in q.stored().items() if k != name})


@methods
def test_casting_a_module_leaves_the_stored_bytes(method: str) -> None:
    q = quantized(method)
    for cast in (nn.Module.half, nn.Module.bfloat16, nn.Module.double, nn.Module.float):
        layer = QuantizedLinear(q, torch.zeros(N))
        cast(layer)
        assert stored_bits(layer) == stored_bits(q)
        assert torch.equal(layer.weight_qt.decode(), q.decode())


# --- products -----------------------------------------------------------------------------------------------------


@methods
@pytest.mark.parametrize("engine", ["auto", "dense", "reference", "tiled"])
def test_the_product_is_that_with_the_dequantized_weight(method: str, engine: str) -> None:
    q = quantized(method)
    x = gaussian(5, K, seed=1)
    want = seen(q, x).double() @ q.decode().double().T
    got = QuantizedLinear(q, None, engine)(x)
    assert got.dtype == x.dtype
    assert relative(got, want) < 1e-5  # float32 sums of 128 products
    assert relative(q.matmul(x), want) < 1e-5


@methods
def test_the_product_in_bfloat16(method: str) -> None:
    q = quantized(method)
    x = gaussian(5, K, seed=1).bfloat16()
    got = QuantizedLinear(q, None)(x)
    assert got.dtype == torch.bfloat16
    assert relative(got, seen(q, x).double() @ q.decode().double().T) < 0.012  # x, values and scales have 8 bits each


@methods
def test_the_gradient_reaches_x(method: str) -> None:
    q = quantized(method)
    x = gaussian(5, K, seed=1).requires_grad_()
    dy = gaussian(5, N, seed=2)
    QuantizedLinear(q, None)(x).backward(dy)
    assert x.grad is not None
    assert relative(x.grad, dy.double() @ q.decode().double()) < 1e-5


@methods
def test_lora_learns_over_the_frozen_base(method: str) -> None:
    dense = nn.Sequential(nn.Linear(K, N))
    with torch.no_grad():
        dense[0].weight.copy_(gaussian())
        dense[0].bias.zero_()
    model = add_lora(
        quantize_model(dense, METHODS[method], calibration={"0": calibration_of(N, K)}),
        LoRAConfig(rank=4, alpha=8, seed=0),
    )
    layer = model[0].base
    before = stored_bits(layer)
    x, target = gaussian(64, K, seed=3) * 20, gaussian(64, N, seed=4)
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert math.isfinite(losses[-1])
    assert stored_bits(layer) == before
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"0.lora.A", "0.lora.B"}
