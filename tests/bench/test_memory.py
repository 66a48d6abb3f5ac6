"""Bytes of models against what was stored and what was written."""

import json

import pytest
import torch
from torch import nn

import bench.measure.memory as memory
from bench.measure.memory import static_memory
from quant import METHODS, PARTS
from quant.lora import LoRAConfig, add_lora, quantize_adapter
from quant.quantizing import quantize_model
from tests.quant.samples import calibrations


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 256), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))


OTHERS = 10 * 256 + 512 + 256  # embedding and biases
QUANTIZED = 2 * 256 * 512


def test_nf4_with_double_quantization_costs_4127_thousandths_of_a_bit():
    out = static_memory(quantize_model(base(), METHODS["nf4-g64-dq"]))
    assert out["bits_per_weight"] == 4 + 8 / 64 + 32 / (64 * 256)
    # stated apart, for each of two tensors: 16 levels, the 256 of the scales, and the offset, in float32
    assert out["constants_bytes"] == 2 * 4 * (16 + 256 + 1)
    assert out["n_quantized_weights"] == QUANTIZED
    assert out["quantized_bytes"] == QUANTIZED * out["bits_per_weight"] / 8 + out["constants_bytes"]


@pytest.mark.parametrize("name", METHODS)
def test_parts_sum_to_the_model_and_the_file_is_what_is_stored(name):
    quantized = quantize_model(base(), METHODS[name], calibration=calibrations(base()))
    model = add_lora(quantized, LoRAConfig(rank=4))
    out = static_memory(model, entropy=False)
    assert set(out["parts_bytes"]) == {*PARTS, "adapter"}
    assert out["model_bytes"] == sum(out["parts_bytes"].values()) == out["quantized_bytes"] + 4 * OTHERS + 24576
    assert out["parts_bytes"]["adapter"] == 4 * 4 * 2 * (256 + 512) == 24576
    assert out["file_bytes"] - out["file_header_bytes"] == out["quantized_bytes"] + 4 * (512 + 256) + 24576
    assert out["trainable_parameters"] >= 4 * 2 * (256 + 512)
    json.dumps(out, allow_nan=False)


def test_bits_of_the_whole_model_count_every_weight():
    model = add_lora(quantize_model(base(), METHODS["uniform-int4-g64"]), LoRAConfig(rank=4))
    out = static_memory(model)
    assert out["n_weights"] == QUANTIZED + OTHERS + 4 * 2 * (256 + 512)
    assert out["bits_per_weight_model"] == 8 * out["model_bytes"] / out["n_weights"]
    assert static_memory(quantize_model(base(), METHODS["fp32"]))["bits_per_weight_model"] == 32


def test_quantized_adapter_is_adapter_and_no_quantized_layer():
    model = add_lora(quantize_model(base(), METHODS["nf4-g64"]), LoRAConfig(rank=4))
    plain, packed = static_memory(model), static_memory(quantize_adapter(model, METHODS["uniform-int8-g64"]))
    assert packed["n_quantized_weights"] == plain["n_quantized_weights"] == QUANTIZED
    assert packed["bits_per_weight"] == plain["bits_per_weight"]
    assert packed["n_weights"] == plain["n_weights"]
    assert 0 < packed["parts_bytes"]["adapter"] < plain["parts_bytes"]["adapter"] / 2
    assert packed["trainable_parameters"] == 0


def test_layers_that_share_a_weight_count_once():
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    model[1].weight = model[0].weight
    out = static_memory(quantize_model(model, METHODS["uniform-int8-g64"]))
    assert out["n_quantized_weights"] == out["n_weights"] == 64 * 64
    assert out["bits_per_weight"] == 8.25
    assert out["model_bytes"] == 64 * 64 + 64 * 2


def test_model_without_quantized_layers_has_reasons_instead_of_bits():
    out = static_memory(base())
    assert out["model_bytes"] == out["parts_bytes"]["unquantized"] == 4 * (QUANTIZED + OTHERS)
    assert out["bits_per_weight_model"] == 32
    for name in ("bits_per_weight", "entropy_bits_per_weight", "file_bytes", "file_header_bytes"):
        assert out[name] is None
    for name in ("bits_per_weight_reason", "entropy_reason", "file_reason"):
        assert "no quantized layer" in out[name]


def test_file_is_written_where_asked_and_removed(tmp_path, monkeypatch):
    places = []
    save = memory.save_model
    monkeypatch.setattr(memory, "save_model", lambda model, place: places.append(place) or save(model, place))
    model = quantize_model(base(), METHODS["nf4-g64"])
    assert static_memory(model, folder=tmp_path)["file_bytes"] > 0
    assert str(places[0]).startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert static_memory(model, folder=tmp_path, save=False)["file_reason"] == "not asked for"
    assert len(places) == 1


def test_file_that_is_not_what_is_stored_is_an_error(monkeypatch):
    monkeypatch.setattr(memory, "saved_sizes", lambda folder: (1000, 100))
    with pytest.raises(RuntimeError, match=r"the file has 1000 bytes, but \d+ are stored"):
        static_memory(quantize_model(base(), METHODS["nf4-g64"]))


def test_entropy_is_bits_a_weight_with_large_layers_counting_more():
    # NF4 at group 64 on normal weights: 3.884 bits a code (16.8 million samples) and 0.5 for the scales
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 1024, bias=False), nn.Linear(1024, 64, bias=False))
    nn.init.normal_(model[0].weight)
    nn.init.zeros_(model[1].weight)
    out = static_memory(quantize_model(model, METHODS["nf4-g64"]))["entropy_bits_per_weight"]
    large, small = 512 * 1024, 1024 * 64
    assert out == pytest.approx((3.884 * large + 0 * small) / (large + small) + 0.5, abs=0.005)
