"""Bytes of a model by part, and the round trip through a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quant import (
    METHODS,
    LoRAConfig,
    add_lora,
    bits_per_weight,
    check_model_folder,
    load_model,
    lora_parameters,
    model_parts,
    quantize_adapter,
    quantize_model,
    quantized_numel,
    save_model,
    saved_sizes,
)
from quant.methods.uniform import Uniform

transformers = pytest.importorskip("transformers")
SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IDS = torch.arange(14).view(2, 7)
NESTED = Uniform(4, 16, scale=Uniform(8, "channel"))


def build(kind: str = "llama") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "bert":
            return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)).eval()
        config = transformers.LlamaConfig(**SMALL, num_key_value_heads=1, tie_word_embeddings=True)
        return transformers.LlamaForCausalLM(config).eval()


def variants(kind: str) -> dict[str, nn.Module]:
    dense = build(kind)
    adapted = add_lora(dense, LoRAConfig(rank=2, seed=0, also_train=("classifier",) if kind == "bert" else ()))
    for i, p in enumerate(lora_parameters(adapted)):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1
    return {
        "dense": dense,
        "quantized": quantize_model(dense, NESTED, compute_dtype=torch.bfloat16),
        "adapted": quantize_model(adapted, METHODS["nf4-g64"]),
        "quantized adapter": quantize_adapter(quantize_model(adapted, NESTED), Uniform(8, "channel")),
    }


def bits(t: Tensor) -> bytes:
    return t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("variant", ["dense", "quantized", "adapted", "quantized adapter"])
def test_a_model_comes_back_bit_for_bit_and_its_file_is_its_bytes(kind: str, variant: str, tmp_path: Path) -> None:
    model = variants(kind)[variant]
    save_model(model, tmp_path)
    size, header = saved_sizes(tmp_path)
    assert size == sum(model_parts(model).values()) + header
    assert check_model_folder(tmp_path) == tmp_path.resolve()
    skeleton = build(kind)
    untouched = {name: bits(t) for name, t in skeleton.state_dict().items()}
    for again in (load_model(tmp_path), load_model(tmp_path, skeleton)):
        saved, loaded = model.state_dict(), again.state_dict()
        assert list(loaded) == list(saved)
        assert all(bits(loaded[n]) == bits(t) and loaded[n].dtype == t.dtype for n, t in saved.items())
        assert torch.equal(again(IDS).logits, model(IDS).logits)
        assert model_parts(again) == model_parts(model)
        trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, again)]
        assert trained[0] == trained[1]
    assert {name: bits(t) for name, t in skeleton.state_dict().items()} == untouched


def test_parts_of_a_model_counted_by_hand() -> None:
    model = nn.Sequential(nn.Embedding(10, 64), nn.Linear(64, 96), nn.LayerNorm(96), nn.Linear(96, 64, bias=False))
    q = quantize_model(add_lora(model, LoRAConfig(rank=2)), METHODS["uniform-int4-g32"])
    assert model_parts(q) == {
        "codes": 64 * 96 // 2 * 2,
        "scales": (96 * 2 + 64 * 3) * 2,
        "adapter": 2 * (64 + 96) * 2 * 4,
        "unquantized": (10 * 64 + 96 + 2 * 96) * 4,
    }
    assert quantized_numel(q) == 2 * 64 * 96
    assert bits_per_weight(q) == 4.5


def test_tied_weights_count_once_and_stay_tied(tmp_path: Path) -> None:
    model = build("llama")
    assert sum(model_parts(model).values()) == sum(4 * p.numel() for p in model.parameters())
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_a_model_without_quantized_layers_has_no_bits_per_weight() -> None:
    with pytest.raises(ValueError, match="no quantized layer"):
        bits_per_weight(nn.Linear(2, 2))


def test_damage_is_refused_by_name(tmp_path: Path) -> None:
    save_model(variants("llama")["quantized"], tmp_path)
    path = tmp_path / "model.safetensors"
    good = path.read_bytes()
    for place in (len(good) - 1, len(good) // 2, 9):
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            load_model(tmp_path)
    path.write_bytes(good[:-5])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        load_model(tmp_path)


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_model(variants("llama")["quantized"], tmp_path)
    path = tmp_path / "quantization.json"
    good = json.loads(path.read_text())
    name = next(iter(good["layers"]))
    newer = good | {"version": 2}
    fewer = good | {"layers": {k: v for k, v in good["layers"].items() if k != name}}
    other = json.loads(json.dumps(good))
    other["layers"][name]["config"]["bits"] = 3
    foreign = good | {"model": "load_state_dict"}
    for changed, why in ((newer, "version 2"), (fewer, "was not saved"), (other, name), (foreign, "no transformers")):
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=why):
            load_model(tmp_path)


def test_another_skeleton_is_refused(tmp_path: Path) -> None:
    save_model(nn.Sequential(nn.Linear(8, 4)), tmp_path)
    with pytest.raises(ValueError, match=r"'0\.weight' is \[4, 8\], the model has \[4, 9\]"):
        load_model(tmp_path, nn.Sequential(nn.Linear(9, 4)))
    with pytest.raises(ValueError, match="pass a skeleton"):
        load_model(tmp_path)


def test_a_merged_adapter_is_not_saved_as_if_it_were_not(tmp_path: Path) -> None:
    model = add_lora(nn.Sequential(nn.Linear(8, 4)), LoRAConfig(rank=2))
    model[0].merge()
    with pytest.raises(ValueError, match="unmerge"):
        save_model(model, tmp_path)


def damaged(settings: dict[str, Any], case: str) -> None:
    layer, adapter = next(iter(settings["layers"].values())), next(iter(settings["adapters"].values()))
    if case == "no layers":
        del settings["layers"]
    elif case == "no engine":
        del layer["engine"]
    elif case == "compute dtype":
        layer["compute_dtype"] = "decimal"
    elif case == "bits":
        layer["config"]["bits"] = "4"
    elif case == "tied":
        settings["tied"] = {"a": "b"}
    elif case == "quantizer":
        adapter["quantizer"] = "nf5"
    elif case == "adapter":
        adapter["colour"] = 1
    elif case == "layer":
        settings["adapters"]["nowhere"] = adapter


@pytest.mark.parametrize(
    "case", ["no layers", "no engine", "compute dtype", "bits", "tied", "quantizer", "adapter", "layer"]
)
def test_damaged_settings_name_their_file(case: str, tmp_path: Path) -> None:
    def skeleton() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 4))

    save_model(add_lora(quantize_model(skeleton(), METHODS["nf4-g64"]), LoRAConfig(rank=2)), tmp_path)
    path = tmp_path / "quantization.json"
    settings = json.loads(path.read_text())
    damaged(settings, case)
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"quantization\.json is damaged"):
        load_model(tmp_path, skeleton())


def test_an_adapter_seen_through_a_quantizer_without_a_name_is_not_saved_as_plain(tmp_path: Path) -> None:
    base = nn.Sequential(nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"register\(name, quantizer\) first"):
        save_model(add_lora(base, LoRAConfig(rank=2, quantizer=Uniform(3, 7))), tmp_path)
    model = add_lora(base, LoRAConfig(rank=2, quantizer=METHODS["uniform-int3-g64"], seed=0))
    torch.nn.init.normal_(model[0].lora.B)  # type: ignore[index, union-attr, arg-type]
    save_model(model, tmp_path)
    x = torch.ones(1, 8)
    loaded = load_model(tmp_path, base)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    # the tensors are equal; the order of a sum may follow how they lie in memory, hence a few units in the last place
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-5)
