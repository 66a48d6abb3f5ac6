"""Low-rank adapters over dense and quantized layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from quant import (
    METHODS,
    LinearWithLoRA,
    LoRAConfig,
    LoRALayer,
    LoRALinear,
    add_lora,
    lora_parameters,
    merge_lora,
    quantize_adapter,
    quantize_model,
)
from quant.methods.uniform import Uniform


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 16))


def adapted(**settings: object) -> nn.Module:
    out = add_lora(model(), LoRAConfig(**{"rank": 4, "seed": 1} | settings))  # type: ignore[arg-type]
    for i, p in enumerate(lora_parameters(out)):
        p.data = random(*p.shape, seed=i) * 0.1
    return out


def test_the_formula() -> None:
    base = nn.Linear(64, 32)
    layer = LinearWithLoRA(base, LoRAConfig(rank=4, alpha=6))
    layer.lora.B.data = random(32, 4)
    x = random(5, 64)
    want = base(x) + (6 / 4) * x @ layer.lora.A.T @ layer.lora.B.T
    assert torch.allclose(layer(x), want, atol=1e-5)
    assert LoRALinear is LinearWithLoRA


def test_an_adapted_layer_starts_as_its_base() -> None:
    dense = model()
    x = random(5, 64)
    assert torch.equal(add_lora(dense, LoRAConfig())(x), dense(x))
    a = LoRALayer(400, 32, LoRAConfig(rank=8, seed=0)).A
    assert a.abs().max() <= 400**-0.5  # kaiming uniform with a = sqrt(5): bound 1 / sqrt(k)
    assert float(a.detach().std()) == pytest.approx(400**-0.5 / 3**0.5, rel=0.05)


def test_adding_is_pure_and_only_adapters_are_trainable() -> None:
    dense = model()
    out = add_lora(dense, LoRAConfig())
    assert all(p.requires_grad for p in dense.parameters())
    assert {n for n, p in out.named_parameters() if p.requires_grad} == {"0.lora.A", "0.lora.B", "2.lora.A", "2.lora.B"}
    assert isinstance(dense[0], nn.Linear)
    assert out[0].base.weight.data_ptr() == dense[0].weight.data_ptr()


def test_a_module_trained_beside_the_adapter_is_the_copys_own() -> None:
    dense = model()
    before = dense[2].weight.detach().clone()
    out = add_lora(dense, LoRAConfig(targets=("0",), also_train=("2",)))
    with torch.no_grad():
        out[2].weight.add_(1)
    assert torch.equal(dense[2].weight, before)
    assert out[2].weight.requires_grad


def test_a_seed_fixes_the_factors_by_layer_name() -> None:
    first, second = add_lora(model(), LoRAConfig(seed=3)), add_lora(model(), LoRAConfig(seed=3))
    assert torch.equal(first[0].lora.A, second[0].lora.A)
    square = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    out = add_lora(square, LoRAConfig(seed=3))
    assert not torch.equal(out[0].lora.A, out[1].lora.A)
    assert not torch.equal(first[0].lora.A, add_lora(model(), LoRAConfig(seed=4))[0].lora.A)


@pytest.mark.parametrize(
    "settings",
    [{"rank": 0}, {"rank": 1.5}, {"alpha": 0}, {"alpha": float("nan")}, {"dropout": 1.0}, {"targets": "q"},
     {"targets": ()}, {"also_train": "head"}],
)  # fmt: skip
def test_a_wrong_setting_fails_at_construction(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        LoRAConfig(**settings)  # type: ignore[arg-type]


def test_targets_must_name_layers_and_adapters_are_not_stacked() -> None:
    assert isinstance(add_lora(model(), LoRAConfig(targets=("2",)))[0], nn.Linear)
    with pytest.raises(ValueError, match=r"targets \['q_proj'\] name no linear layer; there are: 0, 2"):
        add_lora(model(), LoRAConfig(targets=("q_proj",)))
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(adapted(), LoRAConfig())
    with pytest.raises(ValueError, match="also_train"):
        add_lora(model(), LoRAConfig(also_train=("head",)))


def test_dropout_acts_in_training_only() -> None:
    out = adapted(dropout=0.5)
    x = random(5, 64)
    assert torch.equal(out.eval()(x), out.eval()(x))
    assert not torch.equal(out.train()(x), out.eval()(x))


def test_merge_and_unmerge() -> None:
    layer = adapted()[0]
    x, before = random(5, 64), layer.base.weight.detach().clone()
    want = layer(x)
    layer.merge()
    layer.merge()
    assert torch.allclose(layer(x), want, atol=1e-5)
    assert torch.allclose(layer.base.weight, layer.merged_weight())
    layer.unmerge()
    assert torch.equal(layer.base.weight, before)
    assert torch.equal(layer(x), want)


def test_merging_a_layer_leaves_the_model_it_was_made_from() -> None:
    dense = model()
    before = copy.deepcopy(dense.state_dict())
    out = add_lora(dense, LoRAConfig())
    for p in lora_parameters(out):
        p.data.fill_(0.1)
    out[0].merge()
    assert all(torch.equal(before[k], v) for k, v in dense.state_dict().items())


@pytest.mark.parametrize("quantized", [False, True])
def test_a_merged_model_computes_the_same(quantized: bool) -> None:
    out = quantize_model(adapted(), METHODS["nf4-g64"]) if quantized else adapted()
    x = random(5, 64)
    merged = merge_lora(out)
    assert isinstance(merged[0], nn.Linear)
    assert torch.allclose(merged(x), out(x), atol=1e-5)
    if quantized:
        with pytest.raises(ValueError, match="merge_lora"):
            out[0].merge()


def test_a_quantized_adapter_is_the_product_of_the_quantized_factors() -> None:
    out = adapted()
    how = Uniform(8, "channel")
    small = quantize_adapter(out, how)
    layer, old = small[0], out[0]
    a, b = (how.quantize(f.detach()).decode() for f in (old.lora.A, old.lora.B))
    x = random(5, 64)
    want = x @ (old.base.weight + (16 / 4) * b @ a).T + old.base.bias
    assert torch.allclose(layer(x), want, atol=1e-5)
    assert isinstance(out[0].lora, LoRALayer)
    with pytest.raises(ValueError, match="no quantizer was given"):
        quantize_adapter(out)
    with pytest.raises(ValueError, match="no adapters"):
        quantize_adapter(model(), how)


def test_training_through_a_quantizer_gives_what_is_stored_and_still_learns() -> None:
    out = adapted(quantizer=Uniform(4, "channel"))
    x = random(5, 64)
    out(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lora_parameters(out))
    assert torch.allclose(quantize_adapter(out)(x), out(x), atol=1e-5)


def test_a_bfloat16_base_gets_float32_factors_and_keeps_its_dtype() -> None:
    out = add_lora(model().bfloat16(), LoRAConfig())
    assert {p.dtype for p in lora_parameters(out)} == {torch.float32}
    assert out(random(2, 64).bfloat16()).dtype == torch.bfloat16


def test_unmerging_after_a_cast_gives_the_cast_base() -> None:
    layer = LinearWithLoRA(nn.Linear(64, 32), LoRAConfig(rank=4))
    before = layer.base.weight.detach().clone()  # type: ignore[union-attr, operator]
    layer.merge()
    layer.half()
    layer.unmerge()
    assert torch.equal(layer.base.weight, before.half())  # type: ignore[arg-type]
    assert layer(random(2, 64).half()).dtype == torch.float16
