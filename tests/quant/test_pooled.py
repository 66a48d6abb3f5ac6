"""QA-LoRA: sums over groups, and merging into the zero points without error."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quant import (
    METHODS,
    LoRAConfig,
    QuantizedLinear,
    Quantizer,
    UnsupportedError,
    add_lora,
    load_model,
    merge_lora,
    quantize_adapter,
    quantize_model,
    save_adapter,
    save_model,
)
from quant.formats import Affine, Dense
from quant.grouping import decode_scale
from quant.lora import adapted
from quant.merging import merge_into_zeros
from quant.methods.double import DynamicMap
from quant.methods.uniform import Uniform
from quant.pooled import PooledLoRALayer, merged_into_zeros
from tests.quant.samples import gaussian, inputs

METHODS_WITH_ZEROS = [
    Uniform(2, 64, zero="integer"),
    Uniform(4, 32),
    Uniform(3, 48, zero="float"),
    Uniform(8, "channel"),
    Uniform(4, 64, scale=DynamicMap()),
]


def model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(200, 96), nn.Tanh(), nn.Linear(96, 64))


def pooled(how: Quantizer, dense: nn.Module | None = None) -> nn.Module:
    """A model with pooled adapters as if trained."""
    config = LoRAConfig(rank=4, alpha=6, seed=1, pooled=True)
    out = add_lora(quantize_model(dense or model(), how), config)
    for i, layer in enumerate(adapted(out).values()):
        layer.lora.B.data = gaussian(*layer.lora.B.shape, seed=i) / 10  # type: ignore[union-attr, operator]
    return out


def test_the_formula() -> None:
    layer = adapted(pooled(Uniform(4, 64)))["0"]
    x = inputs(5, 200)
    assert isinstance(layer.lora, PooledLoRALayer)
    a, b = layer.lora.A, layer.lora.B
    assert a.shape == (4, 4)  # 200 inputs are three groups of 64 and one of 8
    sums = torch.stack([x[:, 64 * g : 64 * (g + 1)].sum(1) for g in range(4)], 1)
    want = layer.base(x) + (6 / 4) * sums @ a.T @ b.T
    assert torch.allclose(layer(x), want, atol=1e-4)
    assert torch.allclose(layer.lora(x), x @ layer.lora.delta().T, atol=1e-4)
    assert layer.lora(x.view(5, 1, 200)).shape == (5, 1, 96)


def test_it_starts_as_its_base_and_learns() -> None:
    base = quantize_model(model(), Uniform(4, 64))
    out, x = add_lora(base, LoRAConfig(rank=4, pooled=True)), inputs(5, 200)
    assert torch.equal(out(x), base(x))
    out(x).square().sum().backward()
    assert all(bool(layer.lora.B.grad.any()) for layer in adapted(out).values())  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("how", METHODS_WITH_ZEROS, ids=str)
def test_the_merged_product_is_the_unmerged_one_to_float_rounding(how: Quantizer) -> None:
    out = pooled(how)
    merged, x = merge_into_zeros(out), inputs(32, 200)
    before = adapted(out)
    for name in before:
        layer, base = merged.get_submodule(name), before[name].base
        assert isinstance(layer, QuantizedLinear)
        assert isinstance(base, QuantizedLinear)
        new, old = layer.weight_qt, base.weight_qt
        assert isinstance(new, Affine)
        assert isinstance(old, Affine)
        assert torch.equal(new.codes, old.codes)
        assert torch.equal(decode_scale(new.scale), decode_scale(old.scale))
        assert isinstance(new.zero, Tensor)
        assert new.zero.dtype == torch.float32
    # zeros of at most 2**8 are rounded by 2**-24 of themselves, and so are the products
    assert (merged(x) - out(x)).norm() < 1e-5 * out(x).norm()
    assert (quantize_model(model(), how)(x) - out(x)).norm() > 1e-2 * out(x).norm()


def test_float16_zeros_move_a_weight_by_the_stated_bound() -> None:
    layer = adapted(pooled(Uniform(4, 64, zero="integer")))["0"]
    assert isinstance(layer.base, QuantizedLinear)
    assert isinstance(layer.lora, PooledLoRALayer)
    exact, half = (
        merged_into_zeros(layer.base.weight_qt, layer.lora.update().detach(), d) for d in (torch.float32, torch.float16)
    )
    assert isinstance(exact.zero, Tensor)
    scale = decode_scale(exact.scale)
    bound = (exact.zero.abs() * scale * 2.0**-11).repeat_interleave(64, 1)[:, :200]
    moved = (half.decode() - exact.decode()).abs()
    assert bool((moved <= bound * 1.001 + 1e-7).all())
    assert float(moved.max()) > float(bound.max()) / 4  # and it does use it: 96 * 4 zeros are rounded
    assert exact.nbytes - half.nbytes == 2 * exact.zero.numel()


def test_groups_of_zeros_take_an_update() -> None:
    dense = model()
    dense[0].weight.data[3] = 0  # type: ignore[index]
    for how in (Uniform(4, 64), Uniform(4, 64, zero="integer")):
        out, x = pooled(how, dense), inputs(32, 200)
        assert (merge_into_zeros(out)(x) - out(x)).norm() < 1e-5 * out(x).norm()
    weight = Uniform(4, 64).quantize(torch.zeros(8, 64))
    nested = dataclasses.replace(weight, scale=Dense((8, 1), torch.float32, torch.zeros(8, 1)))
    with pytest.raises(UnsupportedError, match="scale is 0 and quantized itself"):
        merged_into_zeros(nested, torch.ones(8, 1))
    assert torch.equal(merged_into_zeros(nested, torch.zeros(8, 1)).decode(), torch.zeros(8, 64))


def test_dense_merging_agrees() -> None:
    out, x = pooled(Uniform(4, 64)), inputs(32, 200)
    assert torch.allclose(merge_lora(out)(x), out(x), atol=1e-4)


@pytest.mark.parametrize("method", ["nf4-g64", "uniform-int4-tensor", "prune-50"])
def test_a_base_without_zeros_by_row_is_refused(method: str) -> None:
    with pytest.raises(UnsupportedError, match="a pooled adapter needs an affine base"):
        add_lora(quantize_model(model(), METHODS[method]), LoRAConfig(pooled=True))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layer '0': a pooled adapter needs a quantized base"):
        add_lora(model(), LoRAConfig(pooled=True))
    with pytest.raises(ValueError, match="not seen through a quantizer"):
        LoRAConfig(pooled=True, quantizer=Uniform(8, "channel"))
    with pytest.raises(ValueError, match="layer '0': its adapter is not pooled"):
        merge_into_zeros(add_lora(quantize_model(model(), Uniform(4, 64)), LoRAConfig()))
    with pytest.raises(ValueError, match="the model has no adapters"):
        merge_into_zeros(model())
    with pytest.raises(ValueError, match="quantized or pooled factors"):
        save_adapter(pooled(Uniform(4, 64)), tmp_path)
    with pytest.raises(ValueError, match="quantized or pooled"):
        quantize_adapter(pooled(Uniform(4, 64)), Uniform(8, "channel"))


def test_both_forms_come_back_from_a_folder(tmp_path: Path) -> None:
    out, x = pooled(Uniform(2, 64, zero="integer")), inputs(8, 200)
    for name, saved in (("adapted", out), ("merged", merge_into_zeros(out, torch.float16))):
        save_model(saved, tmp_path / name)
        assert torch.equal(load_model(tmp_path / name, model())(x), saved(x))
