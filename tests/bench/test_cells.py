"""Cells on tiny models: every order gives its groups, and the baseline differs from itself by nothing."""

from __future__ import annotations

import json

import pytest
import torch

from bench import baseline
from bench.baseline import setting_of
from bench.cache import cached, entry_path
from bench.cells import execute
from bench.data import Batch
from bench.protocol import QUICK
from bench.schema import METRICS, Cell
from quant import METHODS
from quant.modules import linears
from quant.quantizing import quantize_model

PAIRS = [("tiny-encoder", "alice-labels"), ("tiny-causal", "alice")]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        baseline._LAST.clear()
        baseline.setting_of.cache_clear()
        yield
        baseline._LAST.clear()
        baseline.setting_of.cache_clear()


def run(pair, order, method):
    record = execute(Cell(*pair, order, method), QUICK)
    json.dumps(record, allow_nan=False)
    assert set(record.get("accuracy", {})) <= set(METRICS)
    return record


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("order", ["untouched", "features", "full", "lora", "merge"])
def test_an_order_gives_its_groups(pair, order):
    record = run(pair, order, "fp32")
    trains = order in ("features", "full", "lora")
    assert ("training" in record) == trains == ("training_memory" in record)
    assert record["memory"]["model_bytes"] > 0
    assert record["accuracy"]


@pytest.mark.parametrize("pair", PAIRS)
def test_fp32_beneath_and_as_qlora_is_the_baseline_to_the_bit(pair):
    for order in ("beneath", "qlora"):
        figures = run(pair, order, "fp32")["accuracy"]
        assert all(f.get("delta", 0.0) == 0.0 for f in figures.values())
        assert all(f["value"] == 0.0 for name, f in figures.items() if name.startswith(("kl", "cosine")))


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("order", ["loftq", "eora"])
def test_what_an_exact_base_leaves_to_correct_is_nothing(pair, order):
    record = run(pair, order, "fp32")
    assert all(f.get("delta", 0.0) == 0.0 for f in record["accuracy"].values())
    assert record["training"]["start"]["relative_error"] == 0.0


@pytest.mark.parametrize("pair", PAIRS)
def test_fewer_bits_are_further_from_the_baseline(pair):
    name = "cosine_distance" if pair[0] == "tiny-encoder" else "kl_alice"
    far = [run(pair, "beneath", f"uniform-int{bits}-g64")["accuracy"][name]["value"] for bits in (8, 4, 2)]
    assert 0 < far[0] < far[1] / 10 < far[2] / 100


@pytest.mark.parametrize("pair", PAIRS)
def test_training_memory_of_a_quantized_model_is_that_of_the_packed_one(pair):
    model = setting_of(*pair, QUICK, 0).model.module
    layers = linears(model)
    whole = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())}
    rest = sum(whole.values()) - sum(4 * layer.weight.numel() for layer in layers.values())
    memory = {}
    for method in ("fp32", "nf4-g64", "uniform-int4-g64"):
        memory[method] = run(pair, "qlora", method)["training_memory"]
        quantized = quantize_model(model, METHODS[method])
        stored = sum(quantized.get_submodule(name).weight_qt.nbytes for name in layers)
        assert memory[method]["weights_bytes"] - memory[method]["cache_bytes"] == stored + rest
        parts = ("weights", "adapter", "gradients", "optimizer", "activations")
        assert sum(memory[method][f"{part}_bytes"] for part in parts) == memory[method]["peak_bytes"]
    dense = 4 * sum(layer.weight.numel() for layer in layers.values())
    assert 0 < memory["nf4-g64"]["cache_bytes"] < dense / 4
    assert memory["fp32"]["cache_bytes"] == 0
    assert memory["nf4-g64"]["weights_bytes"] < memory["fp32"]["weights_bytes"]


@pytest.mark.parametrize("pair", PAIRS)
def test_every_text_is_moved_to_the_device_of_the_model(pair, monkeypatch):
    moved = {}

    def to(batch, device):
        assert torch.device(device) == torch.device("cpu")
        ids = batch.input_ids.clone()
        moved[id(ids)] = ids
        return Batch(ids, batch.attention_mask, batch.labels)

    kind = type(setting_of(*pair, QUICK, 0).model.module)
    forward = kind.forward
    seen = []

    def checked(self, *args, **inputs):
        seen.append(id(inputs["input_ids"]) in moved)
        return forward(self, *args, **inputs)

    monkeypatch.setattr(Batch, "to", to)
    monkeypatch.setattr(kind, "forward", checked)
    for order in ("untouched", "qlora", "beneath", "speed"):
        run(pair, order, "nf4-g64")
    assert len(seen) > 20
    assert all(seen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("order", ["untouched", "prompt", "beneath", "qlora", "merge", "speed"])
def test_a_cell_on_the_gpu_says_what_it_says_on_the_cpu(pair, order):
    there = execute(Cell(*pair, order, "nf4-g64"), QUICK, device="cuda")
    here = run(pair, order, "nf4-g64")
    json.dumps(there, allow_nan=False)
    assert there.keys() == here.keys()
    assert there["memory"]["parts_bytes"] == here["memory"]["parts_bytes"]
    if "training_memory" in there:
        assert there["training_memory"]["device"].startswith("cuda")
        assert there["training_memory"]["cuda_peak_bytes"] > 0
    for name, figure in here.get("accuracy", {}).items():
        # adapters are trained on either device: float32 sums in another order grow apart over the steps, and 32 texts
        # move an accuracy by 3 % each
        tolerance = 0.1 if name in ("accuracy", "label_agreement") else 0.05 * abs(figure["value"]) + 1e-3
        assert there["accuracy"][name]["value"] == pytest.approx(figure["value"], abs=tolerance)


def test_wrong_names_are_named():
    with pytest.raises(ValueError, match="unknown method 'nf5'"):
        run(PAIRS[0], "beneath", "nf5")
    with pytest.raises(ValueError, match="is for causal models"):
        run(("tiny-encoder", "alice"), "lora", "fp32")


def test_a_damaged_entry_is_made_again():
    made = []

    def make():
        made.append(1)
        return {"a": torch.ones(3)}, {"n": len(made)}

    assert cached("test", {"x": 1}, make)[1] == {"n": 1}
    assert cached("test", {"x": 1}, make)[1] == {"n": 1}
    path = entry_path("test", {"x": 1}).with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert cached("test", {"x": 1}, make)[1] == {"n": 2}
    assert cached("test", {"x": 2}, make)[1] == {"n": 3}


@pytest.mark.parametrize(("pair", "trained"), [(("tiny-causal", "alice"), 0), (("tiny-encoder", "alice-labels"), None)])
def test_an_untouched_model_trains_nothing_but_an_encoders_head(pair, trained):
    found = run(pair, "untouched", "fp32")["memory"]["trainable_parameters"]
    features = run(pair, "features", "fp32")["memory"]["trainable_parameters"]
    assert found == (features if trained is None else trained)
