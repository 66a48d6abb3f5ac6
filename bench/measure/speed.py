"""Times of a model beside those of a baseline: quantizing, a forward pass, a training step.

Baseline and model take turns on the same inputs, in alternating order, so that what disturbs the machine disturbs
both; a ratio is the median of the pairs' ratios. Ratios are baseline time / model time: above 1 the model is faster.
With a pair of models that compute in bfloat16, the forward passes are run a second time as `forward_b1_bf16` and
`prefill_bf16`: the fp32 baseline, the baseline in bfloat16 and the model in bfloat16 in turn.
In the rounds of the forward passes in fp32 the baseline runs a second time: its ratio to itself (`noise`, and
`noise_prefill`) is what this machine makes of no difference at all, and a ratio whose interval meets that one is
`within_noise`: those of batch 1 by the first, those of many tokens by the second. No loop has fewer than `FEWEST`
rounds, since of fewer a median has no 95 % interval.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure.clock import Clock, interleaved
from bench.measure.stats import FEWEST, paired_ratio, stat
from quant import Calibration, Quantizer
from quant.linear import QuantizedLinear

__all__ = ["implementation", "speed_group", "time_quantize"]

NOISY = 0.1  # half-width of the baseline's ratio to itself
SHARES = {"forward_b1": 0.2, "prefill": 0.2, "train_step": 0.3, "forward_b1_bf16": 0.15, "prefill_bf16": 0.15}
DIRECTION = "baseline time / this model's time: above 1 is faster than the baseline"

Inputs = Tensor | Mapping[str, Any] | Sequence[Any]


def speed_group(
    baseline: nn.Module,
    model: nn.Module,
    *,
    inputs_b1: Inputs,
    inputs_prefill: Inputs,
    train_step: Callable[[nn.Module], None] | None = None,
    halves: tuple[nn.Module, nn.Module] | None = None,
    rounds: int = 30,
    threads: int | None = None,
    quantize_seconds: Sequence[float] = (),
    seconds: float = 5.0,
) -> dict[str, Any]:
    """The record's `speed` group.

    Inputs are a tensor, a tuple of arguments or a mapping of keywords. `train_step(m)` runs one step on the model it
    is given, either one. `halves` are baseline and model in bfloat16. At most `rounds` rounds are run, and no more
    than fit in `seconds`, but at least `FEWEST`. Forward passes run in eval mode without gradients. The models' modes
    and torch's thread count are put back.

    Raises ValueError while Triton's interpreter is on, whose times mean nothing.
    """
    refuse_interpreter()
    if rounds < FEWEST:
        raise ValueError(f"rounds must be at least {FEWEST}, got {rounds}")
    before = torch.get_num_threads()
    tops = (baseline, model, *(halves or ()))
    modes = [(m, m.training) for m in {id(m): m for top in tops for m in top.modules()}.values()]
    torch.set_num_threads(threads or before)
    clock = Clock(_device(model))
    out: dict[str, Any] = {"device": str(clock.device), "threads": torch.get_num_threads()}
    try:
        for m in tops:
            m.eval()
        with torch.no_grad():
            turns = {"baseline": baseline, "model": model, "again": baseline}
            b1 = _forwards(turns, inputs_b1, clock, rounds, seconds * SHARES["forward_b1"])
            prefill = _forwards(turns, inputs_prefill, clock, rounds, seconds * SHARES["prefill"])
            out["implementation"] = implementation(model)
            in_bf16 = {}
            if halves is not None:
                turns = {"baseline": baseline, "half": halves[0], "model": halves[1]}
                for name, given in (("forward_b1_bf16", inputs_b1), ("prefill_bf16", inputs_prefill)):
                    in_bf16[name] = _forwards(turns, given, clock, rounds, seconds * SHARES[name])
                out["implementation_bf16"] = implementation(halves[1])
        steps = None
        if train_step is not None:
            _restore(modes)
            third = {"baseline": lambda: train_step(baseline), "model": lambda: train_step(model)}
            steps = interleaved(third, clock, FEWEST, rounds, seconds * SHARES["train_step"])
    finally:
        _restore(modes)
        torch.set_num_threads(before)
    noise, noise_prefill = (paired_ratio(s["again"], s["baseline"]) for s in (b1, prefill))
    tokens = _tokens(inputs_prefill)
    out |= {"quantize_s": stat(quantize_seconds), "ratio_direction": DIRECTION}
    out |= {"noise": noise, "noise_prefill": noise_prefill}
    for name, samples in (("forward_b1", b1), ("prefill", prefill), ("train_step", steps)):
        out |= _figures(name, samples, noise if name == "forward_b1" else noise_prefill)
    for name, samples in in_bf16.items():
        out |= _figures(name, samples, noise if name == "forward_b1_bf16" else noise_prefill)
        out[f"{name}_ratio_bf16"] = paired_ratio(samples["half"], samples["model"])
        out[f"{name}_baseline_bf16_s"] = stat(samples["half"])
    out["prefill_tokens"] = tokens
    out["prefill_tokens_per_s"] = stat([tokens / s for s in prefill["model"]])
    return out | _noisy(noise)


def time_quantize(
    quantizer: Quantizer,
    weights: Mapping[str, Tensor],
    calibration: Mapping[str, Calibration] | None = None,
    *,
    repeats: int = 3,
    seconds: float = 3.0,
) -> list[float]:
    """Seconds to quantize all of `weights`, by layer, once a pass; a further pass starts only within `seconds`.

    The calibration is given: its gathering is not in the time.
    """
    refuse_interpreter()
    clock = Clock(next(iter(weights.values())).device)
    samples: list[float] = []

    def all_of_them() -> None:
        fitted = quantizer.for_layers(weights, calibration)
        for name, weight in weights.items():
            fitted[name].quantize(weight, None if calibration is None else calibration.get(name))

    start = time.perf_counter()
    while len(samples) < max(1, repeats) and (not samples or time.perf_counter() - start + samples[-1] < seconds):
        samples.append(clock(all_of_them))
    return samples


def implementation(model: nn.Module) -> dict[str, int]:
    """{engine: quantized layers that it multiplies}; without quantized layers, the plain linear ones."""
    engines = Counter(m.engine_name for m in model.modules() if isinstance(m, QuantizedLinear))
    plain = sum(isinstance(m, nn.Linear) for m in model.modules())
    return dict(engines) or {"torch.nn.Linear": plain}


def refuse_interpreter() -> None:
    """Raise ValueError while Triton's interpreter is on."""
    if os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y"):
        raise ValueError(
            "TRITON_INTERPRET is set: times of interpreted kernels mean nothing; unset it to measure speed"
        )


def _forwards(
    models: Mapping[str, nn.Module], inputs: Inputs, clock: Clock, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Samples of a forward pass of each of `models`, in turn."""
    calls = {id(m): _forward(m, inputs) for m in models.values()}
    return interleaved({name: calls[id(m)] for name, m in models.items()}, clock, FEWEST, rounds, seconds)


def _figures(name: str, samples: Mapping[str, list[float]] | None, noise: Mapping[str, Any]) -> dict[str, Any]:
    if samples is None:
        empty = stat([]) | {"reason": "not measured"}
        return {f"{name}_s": empty, f"{name}_ratio": empty, f"{name}_baseline_s": empty}
    ratio = paired_ratio(samples["baseline"], samples["model"])
    ratio["within_noise"] = ratio["low"] <= noise["high"] and noise["low"] <= ratio["high"]
    return {
        f"{name}_s": stat(samples["model"]),
        f"{name}_ratio": ratio,
        f"{name}_baseline_s": stat(samples["baseline"]),
    }


def _noisy(noise: Mapping[str, Any]) -> dict[str, Any]:
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    half = (noise["high"] - noise["low"]) / 2
    reasons = []
    if load > cores:
        reasons.append(f"load average {load:.1f} on {cores} cores")
    if half > NOISY:
        reasons.append(f"the baseline's ratio to itself is only known to +-{100 * half:.0f} %")
    out: dict[str, Any] = {"noisy": bool(reasons), "load_average": load}
    return out | ({"noisy_reason": "; ".join(reasons)} if reasons else {})


def _forward(model: nn.Module, inputs: Inputs) -> Callable[[], Any]:
    if isinstance(inputs, Tensor):
        return lambda: model(inputs)
    if isinstance(inputs, Mapping):
        return lambda: model(**inputs)
    return lambda: model(*inputs)


def _tokens(inputs: Inputs) -> int:
    """Tokens of a batch: its attention mask's, else its ids', else the rows of its first tensor of features."""
    if isinstance(inputs, Mapping):
        if isinstance(inputs.get("attention_mask"), Tensor):
            return int(inputs["attention_mask"].sum())
        first = inputs["input_ids"] if "input_ids" in inputs else next(iter(inputs.values()))
    else:
        first = inputs if isinstance(inputs, Tensor) else inputs[0]
    return int(first.numel() // first.shape[-1] if first.is_floating_point() else first.numel())


def _restore(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
