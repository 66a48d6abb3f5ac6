"""New adapters on quantized bases: where they start, what they are trained on, what merging them costs."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from bench import baseline
from bench.adapted import lora_config, quantized_of, with_baseline
from bench.baseline import setting_of
from bench.cells import execute
from bench.pace import shares
from bench.protocol import QUICK
from bench.qlora import QLORA, distilled
from bench.schema import Cell
from quant import METHODS, add_lora, quantize_model
from quant.init import LoftQ, quantize_with_lora
from quant.lora import adapted
from tests.quant.samples import gaussian

PAIRS = [("tiny-encoder", "alice-labels"), ("tiny-causal", "alice")]
METHOD = "uniform-int2-asym-g64"


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        baseline._LAST.clear()
        baseline.setting_of.cache_clear()
        yield
        baseline._LAST.clear()
        baseline.setting_of.cache_clear()


@pytest.fixture(scope="module")
def records(own_cache):
    out = {(pair, order): execute(Cell(*pair, order, METHOD), QUICK) for pair in PAIRS for order in QLORA}
    json.dumps(list(out.values()), allow_nan=False)
    return out


@pytest.mark.parametrize("pair", PAIRS)
def test_every_order_says_where_it_started(records, pair):
    starts = {order: records[pair, order]["training"]["start"] for order in QLORA}
    error = {order: start["relative_error"] for order, start in starts.items()}
    assert error["qlora"] == error["qa-lora"] == error["distill"]
    assert error["loftq"] < error["qpissa"] < error["qlora"]
    assert error["loftq"] < error["eora"] < error["qlora"]
    assert error["loftq"] < error["lq"] < error["qlora"]  # it gives up error where the loss does not feel it
    assert len({error[order] for order in ("loftq", "qpissa", "eora", "lq", "chained")}) == 5
    metrics = set(records[pair, "qlora"]["accuracy"])
    assert all(set(start) - {"cosine_distance"} == metrics | {"relative_error"} for start in starts.values())
    assert not any("items" in figure for figure in starts["qlora"].values() if isinstance(figure, dict))
    if pair[0] == "tiny-encoder":
        far = {order: start["cosine_distance"]["value"] for order, start in starts.items()}
        assert far["eora"] < far["loftq"] < far["qlora"] == far["qa-lora"]
    else:
        far = {order: start["kl_alice"]["value"] for order, start in starts.items()}
        assert far["eora"] < far["loftq"] < far["qlora"] == far["qa-lora"]


@pytest.mark.parametrize("pair", PAIRS)
def test_training_starts_from_what_is_recorded_and_moves(records, pair):
    for order in QLORA:
        record = records[pair, order]
        assert record["training"]["objective"] == ("kl" if order == "distill" else "task")
        name = "loss" if pair[0] == "tiny-encoder" else "perplexity_alice"
        assert record["training"]["start"][name]["value"] != record["accuracy"][name]["value"]
        rates = setting_of(*pair, QUICK, 0).rates
        assert record["training"]["lr"] == rates.lora
        used = {record["training"][name] for name in ("lr_a", "lr_b")}
        assert (used == {rates.lora}) == (order in ("qlora", "distill"))
        assert 0 < min(used) <= max(used) <= rates.lora


@pytest.mark.parametrize("pair", PAIRS)
def test_merging_is_exact_into_zeros_only(records, pair):
    assert "merge_audit" not in records[pair, "loftq"]
    plain, pooled = (records[pair, order]["merge_audit"] for order in ("qlora", "qa-lora"))
    assert set(plain) == {"original", "dequantized", "requantized"}
    assert set(pooled) == {*plain, "zeros", "zeros16"}
    for audit in (plain, pooled):
        error = {way: found["relative_error"] for way, found in audit.items()}
        # rounding to bfloat16 is uniform in relative size up to 2**-8: its mean square root is near 2**-9
        assert 2.0**-10 < error["dequantized"] < 2.0**-8
        assert error["original"] > 0.1
        assert error["requantized"] > 5 * error["dequantized"]
        layers = audit["original"]["layers"]
        assert set(layers) == set(quantized_layers(pair))
        assert min(layers.values()) <= error["original"] <= max(layers.values())
    assert pooled["zeros"]["relative_error"] < 1e-6 < pooled["zeros16"]["relative_error"] < 1e-3
    for name, figure in pooled["zeros"]["metrics"].items():
        assert figure.get("delta", 0.0) == pytest.approx(0.0, abs=1e-3), name
        if name.startswith("kl"):
            assert figure["value"] == pytest.approx(0.0, abs=1e-6)
    far = {way: next(f["value"] for n, f in pooled[way]["metrics"].items() if n.startswith("kl")) for way in pooled}
    assert far["zeros"] < far["requantized"]


def quantized_layers(pair):
    setting = setting_of(*pair, QUICK, 0)
    return adapted(add_lora(setting.task.wrap(setting.model, 0), lora_config(setting)))


@pytest.mark.parametrize("pair", PAIRS)
def test_what_is_distilled_is_the_divergence_from_the_teacher(pair):
    setting = setting_of(*pair, QUICK, 0)
    teacher, _ = with_baseline(setting.task.wrap(setting.model, 0), setting)
    batch = next(iter(setting.task.batches(setting.model, QUICK, 0)))
    assert float(distilled(setting, teacher)(teacher, batch).detach()) == pytest.approx(0.0, abs=1e-6)
    other = quantized_of(setting, teacher, METHODS[METHOD])
    kl = float(distilled(setting, teacher)(other, batch).detach())
    p, q = (setting.task.forward(m, batch).detach().double().softmax(-1) for m in (teacher, other))
    want = (p * (p / q).log()).sum(-1)
    want = want if pair[0] == "tiny-encoder" else want[:, :-1]
    assert kl == pytest.approx(float(want.mean()), rel=1e-4)
    both = float(distilled(setting, teacher, 0.25)(other, batch).detach())
    assert both == pytest.approx(0.75 * kl + 0.25 * float(setting.task.loss(other, batch).detach()), rel=1e-4)
    with pytest.raises(ValueError, match="share_of_task must be from 0 to 1, got 2"):
        distilled(setting, teacher, 2)


def test_a_first_step_of_a_factor_moves_the_weights_no_farther_than_in_qlora():
    """By hand on one layer: the largest step of a product when all entries of one factor move by the rate."""
    config = dataclasses.replace(lora_config(setting_of(*PAIRS[0], QUICK, 0)), also_train=(), rank=4)
    dense = torch.nn.Sequential(torch.nn.Linear(128, 64))
    dense[0].weight.data = gaussian(64, 128) * 20
    assert shares(add_lora(dense, config)) == {}
    lora = quantize_with_lora(dense, METHODS[METHOD], config, LoftQ())[0].lora
    a, b = lora.A.detach(), lora.B.detach()
    share = shares(quantize_with_lora(dense, METHODS[METHOD], config, LoftQ()))
    assert len(share) == 2
    share_a, share_b = share.values()
    plain = 4 * (64 / 3) ** 0.5
    # no step is farther than one that is aligned with the other factor, of rank one and all entries of one size
    assert share_a * (4 * 128) ** 0.5 * float(b.norm()) == pytest.approx(plain, rel=1e-4)
    assert share_b * (4 * 64) ** 0.5 * float(a.norm()) == pytest.approx(plain, rel=1e-4)
    for seed in range(5):
        signs = [torch.randn(f.shape, generator=torch.Generator().manual_seed(seed)).sign() for f in (a, b)]
        assert float((share_a * b @ signs[0]).norm()) < plain
        assert float((share_b * signs[1] @ a).norm()) < plain


def test_a_pooled_factor_counts_once_for_each_column_of_a_group():
    config = dataclasses.replace(lora_config(setting_of(*PAIRS[0], QUICK, 0)), also_train=(), rank=4, pooled=True)
    dense = torch.nn.Sequential(torch.nn.Linear(128, 64))
    pooled = add_lora(quantize_model(dense, METHODS[METHOD]), config)
    share = shares(pooled)
    assert share[pooled[0].lora.A] == 1.0
    size = float(pooled[0].lora.A.detach().norm())
    assert share[pooled[0].lora.B] == pytest.approx((4 / 3) ** 0.5 / size / 64**0.5, rel=1e-4)


def test_a_small_start_learns_at_the_whole_rate_and_so_does_a_head():
    config = dataclasses.replace(lora_config(setting_of(*PAIRS[0], QUICK, 0)), also_train=("1",), rank=4)
    dense = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.Linear(64, 2))
    dense[0].weight.data *= 1e-3
    started = quantize_with_lora(dense, METHODS[METHOD], config, LoftQ(), skip=("1",))
    assert set(shares(started).values()) == {1.0}
    assert started[1].weight not in shares(started)
