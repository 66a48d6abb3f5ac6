"""Times on a clock that the test moves: what is paired with what, in which direction, and how often."""

import json
from itertools import count

import pytest
import torch
from torch import nn

import bench.measure.clock as clock_module
import bench.measure.speed as speed
from bench.measure.clock import Clock, interleaved
from bench.measure.speed import implementation, speed_group, time_quantize
from quant import METHODS
from quant.quantizing import quantize_model


class Virtual:
    """A clock that stands still unless a model moves it, and as slow as `drift` says."""

    now = 0.0

    def __init__(self, device):
        self.device = device

    def __call__(self, call):
        start = Virtual.now
        call()
        return Virtual.now - start


class Costly(nn.Module):
    """Takes `cost(call number)` seconds a call."""

    def __init__(self, cost):
        super().__init__()
        self.cost, self.calls = cost, count()
        self.seen = []

    def forward(self, x, **_):
        self.seen.append((self.training, torch.is_grad_enabled(), tuple(x.shape)))
        Virtual.now += self.cost(next(self.calls))
        return x


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def virtual(monkeypatch):
    monkeypatch.setattr(speed, "Clock", Virtual)
    monkeypatch.setattr(Virtual, "now", 0.0)
    monkeypatch.setattr(speed.os, "getloadavg", lambda: (0.0, 0.0, 0.0))


B1, PREFILL = torch.ones(1, 4, dtype=torch.long), torch.ones(2, 30, dtype=torch.long)


def group(baseline, model, **options):
    return speed_group(baseline, model, inputs_b1=B1, inputs_prefill=PREFILL, **{"rounds": 8} | options)


def test_ratio_above_one_is_faster_than_the_baseline(virtual):
    out = group(Costly(lambda i: 3.0), Costly(lambda i: 1.5), train_step=lambda m: m(B1))
    for name in ("forward_b1", "prefill", "train_step"):
        assert out[f"{name}_ratio"]["value"] == 2.0
        assert out[f"{name}_s"]["value"] == 1.5
        assert out[f"{name}_baseline_s"]["value"] == 3.0
        assert out[f"{name}_ratio"]["n"] == 8
    assert out["prefill_tokens"] == 60
    assert out["prefill_tokens_per_s"]["value"] == 40.0
    assert "above 1 is faster" in out["ratio_direction"]


def test_bfloat16_pair_is_held_against_the_model_in_fp32_and_in_bfloat16(virtual):
    halves = (Costly(lambda i: 4.0), Costly(lambda i: 1.0))
    out = group(Costly(lambda i: 6.0), Costly(lambda i: 3.0), halves=halves)
    for name in ("forward_b1_bf16", "prefill_bf16"):
        assert out[f"{name}_s"]["value"] == 1.0
        assert out[f"{name}_ratio"]["value"] == 6.0
        assert out[f"{name}_ratio_bf16"]["value"] == 4.0
        assert out[f"{name}_baseline_bf16_s"]["value"] == 4.0
    assert {seen[:2] for half in halves for seen in half.seen} == {(False, False)}  # no training mode, no gradients
    assert "forward_b1_bf16_s" not in group(Costly(lambda i: 6.0), Costly(lambda i: 3.0))


def test_a_machine_that_slows_down_moves_times_but_not_ratios(virtual):
    out = group(Costly(lambda i: 2.0 * (1 + Virtual.now / 50)), Costly(lambda i: 1.0 * (1 + Virtual.now / 50)))
    assert out["prefill_s"]["high"] > 1.3 * out["prefill_s"]["low"]
    assert out["prefill_ratio"]["value"] == pytest.approx(2.0, rel=0.05)


def test_baseline_beside_itself_gives_the_noise_and_marks_what_lies_within(virtual):
    jitter = [1.0, 1.04, 0.97, 1.02, 0.99, 1.03]
    out = group(Costly(lambda i: jitter[i % 5]), Costly(lambda i: jitter[i % 6]))
    assert out["noise"]["low"] < 1 < out["noise"]["high"]
    assert out["forward_b1_ratio"]["within_noise"]
    out = group(Costly(lambda i: jitter[i % 5]), Costly(lambda i: 2 * jitter[i % 6]))
    assert not out["forward_b1_ratio"]["within_noise"]
    assert not out["noisy"]


def test_wild_baseline_or_busy_machine_is_marked_noisy(virtual, monkeypatch):
    wild = [1.0, 1.9, 1.1, 1.6, 0.8]
    out = group(Costly(lambda i: wild[i % 5]), Costly(lambda i: 1.0))
    assert out["noisy"]
    assert "ratio to itself" in out["noisy_reason"]
    monkeypatch.setattr(speed.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    out = group(Costly(lambda i: 1.0), Costly(lambda i: 1.0))
    assert out["noisy"]
    assert out["noisy_reason"].startswith("load average 99.0 on")


def test_forward_runs_in_eval_without_gradients_and_training_as_it_was(virtual):
    baseline, model = Costly(lambda i: 1.0), Costly(lambda i: 1.0).eval()
    steps = []

    def step(m):
        steps.append((m, m.training, torch.is_grad_enabled()))
        Virtual.now += 1.0

    group(baseline, model, train_step=step)
    assert {seen[:2] for seen in baseline.seen + model.seen} == {(False, False)}
    assert {seen[2] for seen in model.seen} == {(1, 4), (2, 30)}
    assert {s for s in steps if s[0] is baseline} == {(baseline, True, True)}
    assert {s for s in steps if s[0] is model} == {(model, False, True)}
    assert baseline.training
    assert not model.training


def test_failure_puts_modes_and_threads_back(virtual):
    def fail(i):
        raise RuntimeError("no memory")

    threads = torch.get_num_threads()
    baseline = Costly(lambda i: 1.0)
    with pytest.raises(RuntimeError, match="no memory"):
        group(baseline, Costly(fail), threads=threads + 1)
    assert baseline.training
    assert torch.get_num_threads() == threads


def test_thread_count_is_set_recorded_and_put_back(virtual):
    threads = torch.get_num_threads()
    seen = []
    out = group(
        Costly(lambda i: seen.append(torch.get_num_threads()) or 1.0), Costly(lambda i: 1.0), threads=threads + 1
    )
    assert out["threads"] == threads + 1
    assert set(seen) == {threads + 1}
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_times_of_the_interpreter_are_refused(monkeypatch, value):
    monkeypatch.setenv("TRITON_INTERPRET", value)
    with pytest.raises(ValueError, match="TRITON_INTERPRET"):
        group(Costly(lambda i: 1.0), Costly(lambda i: 1.0))
    with pytest.raises(ValueError, match="TRITON_INTERPRET"):
        time_quantize(METHODS["nf4-g64"], {"layer": torch.ones(2, 64)})


def test_what_was_not_measured_is_null_with_a_reason(virtual):
    out = group(Costly(lambda i: 1.0), Costly(lambda i: 1.0))
    assert out["train_step_s"]["value"] is None
    assert out["train_step_ratio"]["reason"] == "not measured"
    assert out["quantize_s"]["value"] is None
    assert group(Costly(lambda i: 1.0), Costly(lambda i: 1.0), quantize_seconds=[3.0])["quantize_s"]["value"] == 3.0
    json.dumps(out, allow_nan=False)


def test_tokens_are_those_of_the_attention_mask():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    assert speed._tokens({"input_ids": torch.ones(2, 4), "attention_mask": mask}) == 4
    assert speed._tokens({"input_ids": torch.ones(2, 4, dtype=torch.long)}) == 8
    assert speed._tokens((torch.ones(3, 5, 16),)) == 15


def test_order_alternates_and_each_call_is_warmed_up_first():
    ran = []
    calls = {name: (lambda name=name: ran.append(name)) for name in "abc"}

    def ticking(call):
        call()
        return 1.0

    samples = interleaved(calls, ticking, 5, 5, 0.0)
    assert "".join(ran) == "abc" + "abc" + "cba" + "abc" + "cba" + "abc"
    assert {name: len(s) for name, s in samples.items()} == {"a": 5, "b": 5, "c": 5}


def test_short_calls_are_run_until_a_sample_is_long_enough():
    ran = []

    def ticking(call):
        before = len(ran)
        call()
        return (len(ran) - before) * 0.001

    samples = interleaved({"a": lambda: ran.append(1)}, ticking, 5, 5, 0.0)
    assert len(ran) == 2 + 5 * 10  # two to warm up, then ten of a millisecond fill a sample
    assert samples["a"] == pytest.approx([0.001] * 5)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 5), (20.5, 9), (1000.0, 30)])
def test_rounds_fit_the_seconds_but_never_fall_below_the_fewest(monkeypatch, seconds, rounds):
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: Virtual.now)
    monkeypatch.setattr(Virtual, "now", 0.0)

    def second():
        Virtual.now += 1.0

    def other():
        Virtual.now += 1.0

    samples = interleaved({"a": second, "b": other}, Virtual(None), 5, 30, seconds)
    assert len(samples["a"]) == rounds  # two seconds a round, after two to warm up


def test_engines_are_counted_by_layer():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    assert implementation(model) == {"torch.nn.Linear": 2}
    quantized = quantize_model(model, METHODS["nf4-g64"], engine="dense")
    quantized(torch.ones(1, 64))
    assert implementation(quantized) == {"dense": 2}


def test_quantize_time_is_one_sample_a_pass_within_the_seconds():
    weights = {"a": torch.randn(8, 64), "b": torch.randn(8, 64)}
    samples = time_quantize(METHODS["uniform-int4-g64"], weights, repeats=4, seconds=60)
    assert len(samples) == 4
    assert min(samples) > 0
    assert len(time_quantize(METHODS["uniform-int4-g64"], weights, repeats=4, seconds=0)) == 1


def test_real_clock_runs_on_the_cpu():
    model = nn.Linear(8, 8)
    x = torch.ones(1, 8)
    out = speed_group(model, model, inputs_b1=x, inputs_prefill={"input": x}, rounds=6, seconds=0.1)
    assert out["forward_b1_s"]["value"] > 0
    assert out["device"] == "cpu"
    assert out["forward_b1_ratio"]["n"] == 6
    json.dumps(out, allow_nan=False)


def test_too_few_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds must be at least 6, got 2"):
        group(Costly(lambda i: 1.0), Costly(lambda i: 1.0), rounds=2)


@pytest.mark.alone
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_clock_waits_for_the_kernels():
    device = torch.device("cuda:0")
    x = torch.randn(4096, 4096, device=device)
    clock = Clock(device)
    clock(lambda: x @ x)
    one, ten = clock(lambda: x @ x), clock(lambda: [x @ x for _ in range(10)])
    assert 4 < ten / one < 20  # a clock that does not wait sees launches only
