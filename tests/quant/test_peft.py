"""Adapters cross to the peft library and back with equal logits."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quant import METHODS, LoRAConfig, add_lora, load_adapter, lora_parameters, quantize_model, save_adapter
from quant.modules import share

transformers = pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # peft imports optional libraries that warn about each other
    peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IDS = torch.arange(14).view(2, 7)


def build(kind: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "bert":
            return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)).eval()
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=1)).eval()


def adapted(kind: str) -> nn.Module:
    also = ("classifier",) if kind == "bert" else ()
    out = add_lora(build(kind), LoRAConfig(rank=4, alpha=10, seed=1, also_train=also))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in out.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return out


kinds = pytest.mark.parametrize("kind", ["bert", "llama"])


@kinds
def test_peft_reads_what_we_write(kind: str, tmp_path: Path) -> None:
    ours = adapted(kind)
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(share(build(kind)), tmp_path).eval()
    assert torch.allclose(theirs(IDS).logits, ours(IDS).logits, atol=1e-6)
    assert not torch.allclose(build(kind)(IDS).logits, ours(IDS).logits, atol=1e-3)


@kinds
def test_we_read_what_peft_writes(kind: str, tmp_path: Path) -> None:
    targets = ["query", "value"] if kind == "bert" else ["q_proj", "down_proj"]
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=targets, modules_to_save=["classifier"] if kind == "bert" else None
    )
    theirs = peft.get_peft_model(build(kind), config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.add_(0.05)
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(build(kind), tmp_path)
    assert torch.allclose(theirs(IDS).logits, ours(IDS).logits, atol=1e-6)


@kinds
def test_an_adapter_comes_back_as_it_was_also_over_a_quantized_base(kind: str, tmp_path: Path) -> None:
    ours = quantize_model(adapted(kind), METHODS["uniform-int4-g32"])
    save_adapter(ours, tmp_path)
    again = load_adapter(quantize_model(build(kind), METHODS["uniform-int4-g32"]), tmp_path)
    assert torch.equal(again(IDS).logits, ours(IDS).logits)
    pairs = zip(lora_parameters(ours), lora_parameters(again), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("option", "value"),
    [("use_dora", True), ("use_rslora", True), ("bias", "all"), ("rank_pattern", {"q_proj": 2}), ("peft_type", "IA3")],
)
def test_an_option_that_changes_the_arithmetic_is_refused(option: str, value: object, tmp_path: Path) -> None:
    save_adapter(adapted("llama"), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {option: value}))
    with pytest.raises(ValueError, match=option):
        load_adapter(build("llama"), tmp_path)


def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    save_adapter(adapted("llama"), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    good = load_file(path)
    name = next(iter(good))
    for changed in (
        {k: t for k, t in good.items() if k != name.replace("lora_A", "lora_B")},
        good | {name: good[name][:, :-1].contiguous()},
        good | {"base_model.model.nowhere.weight": torch.zeros(3)},
    ):
        save_file(changed, path)
        with pytest.raises(ValueError, match=r"lora_[AB]|nowhere"):
            load_adapter(build("llama"), tmp_path)
