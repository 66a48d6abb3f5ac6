"""Models that are quantized and adapted in one go: what they compute, what is kept, what peft makes of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quant import (
    METHODS,
    LoRAConfig,
    QuantizedLinear,
    load_adapter,
    load_model,
    quantize_model,
    save_adapter,
    save_model,
)
from quant.calibrate import calibrate
from quant.init import INITS, EoRA, quantize_with_lora
from quant.init.model import needs_of
from quant.lora import adapted
from quant.modules import share
from tests.quant.samples import inputs

HOW = METHODS["uniform-int2-asym-g64"]


def model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(128, 96), nn.Tanh(), nn.Linear(96, 64))


def known(dense: nn.Module, x: Tensor) -> object:
    return calibrate(dense, [x], ("second_moment", "fisher"), loss=lambda m, b: m(b).square().mean())


@pytest.mark.parametrize("alpha", [4.0, 32.0])
@pytest.mark.parametrize("name", sorted(INITS))
def test_the_first_output_is_that_of_base_and_correction(name: str, alpha: float) -> None:
    dense, x = model(), inputs(64, 128) / 5
    calibration = known(dense, x)
    out = quantize_with_lora(dense, HOW, LoRAConfig(rank=8, alpha=alpha, seed=1), name, calibration)  # type: ignore[arg-type]
    for layer_name, layer in adapted(out).items():
        weight = dense.get_submodule(layer_name).weight.detach()  # type: ignore[union-attr, operator]
        start = INITS[name](weight, HOW, calibration[layer_name], 8, 0)  # type: ignore[index]
        assert isinstance(layer.base, QuantizedLinear)
        assert torch.allclose(layer.merged_weight(), start.base.decode() + start.B @ start.A, atol=1e-6)
    plain = quantize_model(dense, HOW)
    if name == "plain":
        assert torch.equal(out(x), plain(x))
    if name == "eora":  # the only one that knows the inputs
        first, base = (m[0](x) - dense[0](x) for m in (out, plain))
        assert first.norm() < 0.8 * base.norm()


def test_only_targets_are_corrected_and_only_adapters_learn() -> None:
    dense, x = model(), inputs(8, 128)
    out = quantize_with_lora(dense, HOW, LoRAConfig(rank=4, targets=("2",), also_train=("1",)), "loftq")
    assert isinstance(out[0], QuantizedLinear)
    assert torch.equal(out[0].weight_qt.decode(), HOW.quantize(dense[0].weight).decode())
    assert {n for n, p in out.named_parameters() if p.requires_grad} == {"2.lora.A", "2.lora.B"}
    out(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in adapted(out)["2"].lora.parameters())
    assert isinstance(dense[0], nn.Linear)


def test_layers_that_share_a_weight_share_base_and_correction() -> None:
    first, second = nn.Linear(128, 128), nn.Linear(128, 128)
    second.weight = first.weight
    out = quantize_with_lora(nn.Sequential(first, second), HOW, LoRAConfig(rank=4, seed=0), "loftq")
    one, two = adapted(out).values()
    assert torch.equal(one.merged_weight(), two.merged_weight())
    assert bool(two.lora.delta().any())


def test_centroids_that_learn_under_the_adapter_are_known_to_the_layer() -> None:
    out = quantize_with_lora(model(), METHODS["cluster-16-tuned"], LoRAConfig(rank=4), "loftq")
    assert all(layer.base.trainable for layer in adapted(out).values())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="unknown initialisation 'lofq'; known: plain, loftq"):
        quantize_with_lora(model(), HOW, LoRAConfig(), "lofq")
    with pytest.raises(ValueError, match="a pooled adapter starts at zero"):
        quantize_with_lora(model(), HOW, LoRAConfig(pooled=True))
    with pytest.raises(ValueError, match=r"layer '0': .*second_moment"):
        quantize_with_lora(model(), HOW, LoRAConfig(), EoRA())
    with pytest.raises(ValueError, match="targets"):
        quantize_with_lora(model(), HOW, LoRAConfig(targets=("q_proj",)))
    assert needs_of(HOW, "eora") == {"second_moment"}


def test_a_started_model_comes_back_from_its_folder(tmp_path: Path) -> None:
    out, x = quantize_with_lora(model(), HOW, LoRAConfig(rank=4, seed=0), "qpissa"), inputs(8, 128)
    save_model(out, tmp_path)
    assert torch.equal(load_model(tmp_path, model())(x), out(x))


def test_a_started_adapter_belongs_to_its_base(tmp_path: Path) -> None:
    out, x = quantize_with_lora(model(), HOW, LoRAConfig(rank=4, seed=0), "loftq"), inputs(8, 128)
    save_adapter(out, tmp_path)
    base = share(out)
    for name, layer in adapted(base).items():
        setattr(base, name, layer.base)
    assert torch.equal(load_adapter(base, tmp_path)(x), out(x))


@pytest.mark.filterwarnings("ignore")
def test_peft_computes_the_same_over_the_dequantized_base(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft imports optional libraries that warn about each other
        peft = pytest.importorskip("peft")
    out, x = quantize_with_lora(model(), HOW, LoRAConfig(rank=4, alpha=10, seed=0), "loftq"), inputs(8, 128)
    save_adapter(out, tmp_path)
    dense = model()
    for name, layer in adapted(out).items():
        dense.get_submodule(name).weight.data = layer.base.weight_qt.decode()  # type: ignore[union-attr]
    theirs = peft.PeftModel.from_pretrained(dense, tmp_path)
    assert torch.allclose(theirs(x), out(x), atol=1e-4)
    assert not torch.allclose(quantize_model(model(), HOW)(x), out(x), atol=1e-2)
