"""The order `gradual`: dense at the first step, as sparse as the method prunes well before the last one."""

from __future__ import annotations

import pytest
import torch

from bench import baseline, gradual
from bench.baseline import setting_of
from bench.cells import execute
from bench.gradual import adapt_gradually, schedule_of
from bench.protocol import QUICK
from bench.schema import Cell
from quant import METHODS, UnsupportedError
from quant.lora import adapted

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


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 22, 100])
def test_the_schedule_ends_at_three_quarters_of_the_steps(steps):
    shares = [schedule_of(0.5, steps).sparsity(t) for t in range(steps + 1)]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[max(1, 3 * steps // 4)] == 0.5
    assert len(set(shares)) <= 2 * gradual.CHANGES + 1


@pytest.mark.parametrize("pair", PAIRS)
def test_what_is_stored_and_judged_is_the_methods_format(pair):
    wanted = execute(Cell(*pair, "qlora", "prune-50"), QUICK)
    record = execute(Cell(*pair, "gradual", "prune-50"), QUICK)
    assert record["memory"] == wanted["memory"]
    assert record["training"]["start"]["relative_error"] == 0 < wanted["training"]["start"]["relative_error"]
    assert record["training"]["steps"] == wanted["training"]["steps"]
    dense = sum(p.numel() for p in dense_weights(pair)) * 4
    more = record["training_memory"]["weights_bytes"] - wanted["training_memory"]["weights_bytes"]
    assert more == dense


def dense_weights(pair):
    setting = setting_of(*pair, QUICK, 0)
    module = gradual.add_lora(setting.task.wrap(setting.model, 0), gradual.lora_config(setting))
    return [layer.base.weight for layer in adapted(module).values()]  # a bias is shared with the pruned layer


def test_every_step_is_taken_at_the_schedules_sparsity(monkeypatch):
    """The steps of training see the base of that step; the packed model shares the trained tensors."""
    setting = setting_of(*PAIRS[0], QUICK, 0)
    seen = []

    def steps(setting, module, lr, *, measured, loss):
        batch = next(iter(setting.task.batches(setting.model, QUICK, 0)))
        for _ in range(10):
            loss(module, batch)
            seen.append(
                min(float((layer.base.weight_qt.decode() == 0).float().mean()) for layer in adapted(module).values())
            )
        with torch.no_grad():
            next(iter(adapted(module).values())).lora.B.fill_(3.0)
        return {}, {}

    monkeypatch.setattr(gradual, "fit", steps)
    monkeypatch.setattr(gradual, "schedule_of", lambda final, count: schedule_of(final, 10))
    out = adapt_gradually(setting, METHODS["prune-50"])
    wanted = [schedule_of(0.5, 10).sparsity(t) for t in range(10)]
    assert seen == pytest.approx(wanted, abs=0.02)  # a share of whole weights; layers here have a few hundred
    assert seen[0] < 0.02
    assert seen[-1] >= 0.5
    first, packed = (next(iter(adapted(m).values())) for m in (out.module, out.packed))
    assert torch.equal(first.lora.B, packed.lora.B)
    assert (first.base.engine, packed.base.engine) == ("dense", "auto")


@pytest.mark.parametrize("method", ["nf4-g64", "prune-2of4"])
def test_a_method_without_a_share_is_unsupported(method):
    with pytest.raises(UnsupportedError, match="prunes no share of the weights"):
        adapt_gradually(setting_of(*PAIRS[0], QUICK, 0), METHODS[method])
