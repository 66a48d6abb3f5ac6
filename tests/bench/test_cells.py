"""Cells on tiny models: every order gives its groups, and the baseline differs from itself by nothing."""

from __future__ import annotations

import json

import pytest
import torch

from bench import baseline
from bench.cache import cached, entry_path
from bench.cells import execute
from bench.protocol import QUICK
from bench.schema import METRICS, Cell

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
def test_fewer_bits_are_further_from_the_baseline(pair):
    name = "cosine_distance" if pair[0] == "tiny-encoder" else "kl_alice"
    far = [run(pair, "beneath", f"uniform-int{bits}-g64")["accuracy"][name]["value"] for bits in (8, 4, 2)]
    assert 0 < far[0] < far[1] / 10 < far[2] / 100


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
