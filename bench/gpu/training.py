"""Time and memory of a training step of decoder layers of Llama-3-8B's sizes, weights random: LoRA and QLoRA.

The layers are transformers' own, without embedding and head (x is drawn, the loss is the mean square of the output), so
that what differs between the methods is not hidden beneath what does not. All of them train a LoRA of the same rank on
every linear layer by AdamW, take turns in the timing, and are split by what their memory is for (`bench.measure`).
Nothing is recomputed in the backward pass. Layer sizes: Dubey et al. 2024, arXiv 2407.21783, table 3.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu.machine import clocks, device_record, installed
from bench.gpu.store import TRAINING, Record, Sink
from bench.gpu.sweep import Budget, refuse_interpreter
from bench.gpu.timing import SubjectError, one_line
from bench.measure.clock import Clock, interleaved
from bench.measure.speed import implementation
from bench.measure.stats import paired_ratio, stat
from bench.measure.training import train_step_memory
from quant import METHODS, LoRAConfig, add_lora, quantize_model

__all__ = ["ARMS", "LLAMA_8B", "TINY", "Sizes", "decoder", "run_training"]

ARMS = ("bf16", "nf4-g64-dq", "uniform-int4-g64")
ROUNDS = (6, 12)  # fewest, most
RATE = 1e-4


@dataclass(frozen=True)
class Sizes:
    """Of the decoder, the adapter and the batch."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    layers: int
    tokens: int
    batch: int = 1
    rank: int = 16


LLAMA_8B = (
    Sizes("Llama-3-8B", 4096, 14336, 32, 8, layers=1, tokens=512),
    Sizes("Llama-3-8B", 4096, 14336, 32, 8, layers=4, tokens=512),
    Sizes("Llama-3-8B", 4096, 14336, 32, 8, layers=4, tokens=2048),
)
TINY = (Sizes("tiny", 128, 256, 4, 2, layers=1, tokens=16),)


def decoder(sizes: Sizes, device: str, method: str) -> nn.Module:
    """Decoder layers in bfloat16 with a LoRA on every linear layer, over weights quantized by `method`."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        use_cache=False,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model: nn.Module = LlamaModel(config)
    finally:
        torch.set_default_dtype(before)
    model = add_lora(model, LoRAConfig(rank=sizes.rank, alpha=2 * sizes.rank, seed=0))
    return model if method == "bf16" else quantize_model(model, METHODS[method])


def step_of(model: nn.Module, x: Tensor) -> tuple[Callable[[], Tensor], Callable[[], None], list[nn.Parameter]]:
    """(the loss, one whole step, what it trains) of a decoder on x [batch, tokens, hidden]."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    model.train()

    def loss() -> Tensor:
        y: Tensor = model(inputs_embeds=x).last_hidden_state
        return y.float().square().mean()

    def step() -> None:
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return loss, step, trained


def run_training(sizes: tuple[Sizes, ...], device: str, out: Path | None, budget: Budget) -> int:
    """Measure every size; a record and a line an arm. Exit code 1 when an arm failed or time ran out before all."""
    refuse_interpreter()
    sink = Sink(out, TRAINING, device, lambda record: print(told(record), flush=True))
    about = device_record(device) | {"peft": installed("peft")["peft"]}
    for size in sizes:
        if budget.left <= 0:
            for arm in ARMS:
                sink(
                    head(size, arm, about, device) | {"status": "skipped", "reason": "the time budget ended before it"}
                )
        else:
            one_size(size, about, device, sink, budget)
    return 1 if any(r["status"] != "ok" for r in sink.written) else 0


def one_size(size: Sizes, about: dict[str, Any], device: str, sink: Sink, budget: Budget) -> None:
    """Memory of each arm while it is alone on the device, then the times of all of them in turns.

    An arm that fails at some step is a record, with what was measured of it before; the others go on.
    """
    found = {arm: head(size, arm, about, device) for arm in ARMS}
    steps: dict[str, Callable[[], None]] = {}
    models: dict[str, nn.Module] = {}

    def given_up(arm: str, error: BaseException) -> None:
        status = "oom" if isinstance(error, torch.OutOfMemoryError) else "failed"
        sink(found.pop(arm) | {"status": status, "reason": one_line(error)})
        steps.pop(arm, None)
        models.pop(arm, None)

    for arm in ARMS:
        try:
            found[arm] |= {"training_memory": alone(size, arm, device)}
        except Exception as error:
            given_up(arm, error)
        _release(device)
    for arm in list(found):
        try:
            models[arm] = decoder(size, device, arm)
            steps[arm] = step_of(models[arm], inputs(size, device))[1]
        except Exception as error:
            given_up(arm, error)
    samples: dict[str, list[float]] = {}
    while steps and not samples:
        try:
            clock, seconds = Clock(torch.device(device)), min(8.0, max(budget.left, 0.0))
            samples = interleaved({arm: named(arm, step) for arm, step in steps.items()}, clock, *ROUNDS, seconds)
        except SubjectError as error:
            given_up(error.name, error.__cause__ or error)
    tokens = size.batch * size.tokens
    for arm in list(samples):
        record = found[arm] | {"status": "ok", "reason": "", "step_s": stat(samples[arm])}
        record["tokens_per_s"] = stat([tokens / s for s in samples[arm]])
        record["speedup"] = paired_ratio(samples["bf16"], samples[arm]) if "bf16" in samples else stat([])
        record["implementation"] = implementation(models[arm])
        record["clocks"] = clocks() if device == "cuda" else {"reason": "clocks are read of a GPU only"}
        sink(record)
    steps.clear()
    models.clear()
    _release(device)


def named(arm: str, step: Callable[[], None]) -> Callable[[], None]:
    """The step, whose failure says whose it is."""

    def run() -> None:
        try:
            step()
        except Exception as error:
            raise SubjectError(arm, one_line(error)) from error

    return run


def inputs(size: Sizes, device: str) -> Tensor:
    """x [batch, tokens, hidden] in bfloat16, the same for every arm."""
    draw = torch.Generator(device).manual_seed(1)
    x = torch.randn(size.batch, size.tokens, size.hidden, device=device, generator=draw)
    return x.to(torch.bfloat16)


def alone(size: Sizes, arm: str, device: str) -> dict[str, Any]:
    """Memory of the second training step of one arm."""
    model = decoder(size, device, arm)
    loss, _, trained = step_of(model, inputs(size, device))
    return train_step_memory(
        model, loss, trained, make_optimizer=lambda parameters: torch.optim.AdamW(list(parameters), lr=RATE)
    )


def head(size: Sizes, arm: str, about: dict[str, Any], device: str) -> Record:
    """What every record of training says."""
    where = f"{size.layers} layers of {size.name}, {size.batch} x {size.tokens} tokens"
    return {
        "kind": "training",
        "key": f"{about['device_name']} / {where} / rank {size.rank} / {arm}",
        "device": device,
        "method": arm,
        "sizes": asdict(size),
        "holds": "decoder layers without embedding and head; every linear layer has a LoRA in float32",
        "dtype": "bfloat16",
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "provenance": about,
    }


def told(record: Record) -> str:
    """A record as a line for the log."""
    where = f"{record['sizes']['layers']} layers, {record['sizes']['tokens']} tokens, {record['method']}"
    if record["status"] != "ok":
        return f"{record['status']:<8} {where}: {record['reason']}"
    memory, step = record["training_memory"], record["step_s"]["value"]
    return f"ok       {where}: {step * 1e3:.1f} ms a step, peak {memory['peak_bytes'] / 1e9:.2f} GB"


def _release(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
