"""Bytes of models small enough to be counted by hand."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import bench.measure.training as training
from bench.measure.tracker import CATEGORIES, MemoryTracker
from bench.measure.training import train_step_memory
from quant import METHODS
from quant.lora import LoRAConfig, add_lora, lora_parameters
from quant.quantizing import quantize_model

PARTS = [f"{c}_bytes" for c in CATEGORIES]


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def mlp(k=8, hidden=16, n=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(k, hidden), nn.ReLU(), nn.Linear(hidden, n))


def measure(model, x, make_optimizer=adam, parameters=None):
    parameters = list(model.parameters()) if parameters is None else parameters
    return train_step_memory(model, lambda: model(x).sum(), parameters, make_optimizer=make_optimizer)


# --- storages ----------------------------------------------------------------------------------------------------


def test_views_count_once_and_what_is_freed_is_subtracted():
    with MemoryTracker() as tracker:
        a = torch.empty(1000)
        b = a.view(10, 100)[:, 3]
        assert tracker.live()["activations"] == 4000
        del a
        assert tracker.live()["activations"] == 4000
        del b
        assert tracker.live()["activations"] == tracker.total == 0
        c = torch.empty(10)
        assert tracker.total == 40
        del c
    assert tracker.peak_bytes == sum(tracker.peak().values()) == 4000


def test_a_new_storage_at_an_old_address_is_a_new_one():
    with MemoryTracker() as tracker:
        for _ in range(50):
            torch.empty(100)
        assert tracker.total == 0
    assert tracker.peak_bytes == 400


def test_tensors_that_were_there_before_count_once_they_are_used():
    x = torch.ones(64)
    torch.ones(1000)
    with MemoryTracker() as tracker:
        y = x + 1
    assert tracker.peak() == dict.fromkeys(CATEGORIES, 0) | {"activations": 512}
    assert y.shape == (64,)


def test_resized_storage_counts_its_new_size():
    with MemoryTracker() as tracker:
        x = torch.empty(10)
        x.resize_(1000)
        assert tracker.total == 4000
        x.untyped_storage().resize_(0)
        x.resize_(0)
        assert tracker.total == 0
    assert tracker.peak_bytes == 4000


def test_tied_weights_and_buffers_count_once():
    model = nn.ModuleDict({"a": nn.Linear(8, 8, bias=False), "b": nn.Linear(8, 8, bias=False)})
    model["b"].weight = model["a"].weight
    model.register_buffer("table", torch.zeros(100, dtype=torch.uint8))
    with MemoryTracker() as tracker:
        tracker.watch_model(model.requires_grad_(False))
        assert tracker.live() == dict.fromkeys(CATEGORIES, 0) | {"weights": 8 * 8 * 4 + 100}


def test_meta_tensors_and_other_devices_have_no_bytes():
    with MemoryTracker("cuda") as tracker:
        torch.empty(100)
    assert tracker.peak_bytes == 0
    with MemoryTracker() as tracker:
        torch.empty(100, device="meta")
    assert tracker.peak_bytes == 0


def test_tensors_kept_by_a_custom_function_live_until_its_backward():
    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x * 2)
            return x.sum()

        @staticmethod
        def backward(ctx, dy):
            (kept,) = ctx.saved_tensors
            return kept * dy

    x = torch.ones(256, requires_grad=True)
    with MemoryTracker() as tracker:
        tracker.assign("adapter", x)
        y = Keep.apply(x)
        assert tracker.live()["activations"] == 1024 + 4
        y.backward()
        del y
        assert tracker.live() == dict.fromkeys(CATEGORIES, 0) | {"adapter": 1024, "activations": 1024}
        tracker.assign("gradients", x.grad)
        assert tracker.live()["gradients"] == 1024


def test_unknown_category_is_named():
    with pytest.raises(ValueError, match="unknown category 'other'"):
        MemoryTracker().assign("other", torch.empty(1))


# --- a training step ---------------------------------------------------------------------------------------------


def test_step_of_a_small_network_is_counted_to_the_byte():
    out = measure(mlp(), torch.ones(32, 8))
    parameters = 8 * 16 + 16 + 16 * 4 + 4
    assert out["weights_bytes"] == 0
    assert out["adapter_bytes"] == 4 * parameters
    assert out["optimizer_bytes"] == 4 * (2 * parameters + 4)  # two moments, and a step count for each of 4 tensors
    # the peak is the backward pass through the ReLU: the gradients of the second layer exist, those of the first do not
    assert out["gradients_bytes"] == 4 * (16 * 4 + 4)
    saved = 4 * (32 * 8 + 32 * 16)  # the inputs of the two layers; the ReLU saves the second of them
    passed = 4 * (2 * 32 * 16)  # the gradients of its output and of its input
    assert out["activations_bytes"] == saved + passed + 4 + 4  # and the loss with its gradient, one


def test_small_batch_peaks_in_the_optimizer_with_every_gradient_alive():
    out = measure(mlp(64, 64, 64), torch.ones(1, 64))
    parameters = 4 * 2 * (64 * 64 + 64)
    assert out["adapter_bytes"] == out["gradients_bytes"] == parameters
    assert out["optimizer_bytes"] == 2 * parameters + 16
    # inputs and temporaries of one tensor at a time: no more than three copies of the largest
    assert out["activations_bytes"] <= 3 * 4 * 64 * 64 + 4096


def test_optimizer_without_state_has_no_bytes():
    assert measure(mlp(), torch.ones(32, 8), sgd)["optimizer_bytes"] == 0


def test_activations_grow_with_the_batch_and_nothing_else_does():
    small, large = (measure(mlp(), torch.ones(m, 8)) for m in (32, 64))
    assert large["activations_bytes"] - 8 == 2 * (small["activations_bytes"] - 8)
    for name in ("weights_bytes", "adapter_bytes", "gradients_bytes", "optimizer_bytes"):
        assert small[name] == large[name]


def test_lora_moves_the_bytes_of_the_base_from_adapter_to_weights():
    base = mlp(64, 64, 64)
    whole = measure(base, torch.ones(4, 64))
    model = add_lora(base, LoRAConfig(rank=2))
    lora = measure(model, torch.ones(4, 64), parameters=list(lora_parameters(model)))
    adapter = 4 * 2 * 2 * (64 + 64)
    assert lora["weights_bytes"] == whole["adapter_bytes"] == 4 * 2 * (64 * 64 + 64)
    assert lora["adapter_bytes"] == adapter
    assert lora["gradients_bytes"] <= adapter
    assert lora["optimizer_bytes"] == 2 * adapter + 16


def test_quantized_base_counts_its_stored_tensors_and_the_caches_of_its_engine():
    base = mlp(64, 64, 64)
    codes = quantize_model(base, METHODS["uniform-int4-g64"], engine="reference")
    model = add_lora(codes, LoRAConfig(rank=2))
    biases = 2 * 64 * 4
    stored = sum(codes[i].weight_qt.nbytes for i in (0, 2))
    out = measure(model, torch.ones(4, 64), parameters=list(lora_parameters(model)))
    assert out["weights_bytes"] == stored + biases
    dense = add_lora(quantize_model(base, METHODS["uniform-int4-g64"], engine="dense"), LoRAConfig(rank=2))
    kept = measure(dense, torch.ones(4, 64), parameters=list(lora_parameters(dense)))
    assert kept["weights_bytes"] == stored + biases + 2 * 64 * 64 * 4


def test_cache_made_during_the_measured_step_still_counts_as_weights():
    model = quantize_model(mlp(64, 64, 64), METHODS["uniform-int4-g64"], engine="dense")
    scale = model[0].stored()["scale"].requires_grad_()
    bias = model[0].bias

    def loss():
        with torch.no_grad():
            scale.mul_(1.0)  # written to: the engine decodes it anew
        return model(torch.ones(4, 64)).sum()

    out = train_step_memory(model, loss, [bias], make_optimizer=sgd)
    assert out["weights_bytes"] >= 2 * 64 * 64 * 4


@pytest.mark.parametrize("make_optimizer", [adam, sgd, torch.optim.AdamW])
@pytest.mark.parametrize("m", [1, 7, 300])
def test_categories_sum_to_the_peak(m, make_optimizer):
    out = measure(mlp(), torch.ones(m, 8), make_optimizer)
    assert sum(out[name] for name in PARTS) == out["peak_bytes"] > 0
    json.dumps(out, allow_nan=False)


def test_measuring_leaves_parameters_gradients_and_random_state_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    measure(model, torch.ones(16, 8))
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_step_that_fails_leaves_no_hook_behind():
    model = mlp()
    calls = []

    def loss():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return model(torch.ones(2, 8)).sum()

    with pytest.raises(RuntimeError, match="no memory"):
        train_step_memory(model, loss, list(model.parameters()), make_optimizer=adam)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert measure(model, torch.ones(2, 8))["peak_bytes"] > 0


def test_what_cannot_be_trained_is_refused():
    model = mlp()
    with pytest.raises(ValueError, match="no parameter"):
        measure(model, torch.ones(2, 8), parameters=[])
    with pytest.raises(ValueError, match=r"scalar that depends on a parameter, got shape \[2, 4\]"):
        train_step_memory(model, lambda: model(torch.ones(2, 8)), list(model.parameters()), make_optimizer=sgd)
    with pytest.raises(ValueError, match="one real device, got \\['meta'\\]"):
        measure(mlp().to("meta"), torch.ones(2, 8, device="meta"))


# --- the process -------------------------------------------------------------------------------------------------


def test_peak_of_the_process_is_that_of_the_step_not_of_its_past():
    if reason := training.reset_peak_rss():
        pytest.skip(reason)
    before = training.peak_rss()[0]
    torch.ones(100_000_000).sum()  # 400 MB in a mapping of its own, freed
    past = training.peak_rss()[0]
    assert past > before + 300_000_000
    assert not training.reset_peak_rss()
    assert training.peak_rss()[0] < past - 200_000_000


def test_peak_that_cannot_be_reset_is_null_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "PROC", Path(tmp_path / "absent"))
    out = measure(mlp(), torch.ones(2, 8))
    assert out["peak_rss_bytes"] is None
    assert "No such file" in out["peak_rss_reason"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_allocator_agrees_with_the_tracker_up_to_its_rounding():
    model = mlp(1024, 1024, 1024).cuda()
    out = measure(model, torch.ones(2048, 1024, device="cuda"))
    grown = out["cuda_peak_bytes"]
    # 512-byte rounding of each tensor, and cuBLAS workspaces of up to 32 MiB
    assert out["peak_bytes"] <= grown <= out["peak_bytes"] + (40 << 20)
