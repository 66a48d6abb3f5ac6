"""The speed of one method on one model: both the model in fp32 and the quantized one carry a fresh adapter.

The forward pass at batch 1 is of one real sentence (an encoder) or one token (a causal model, as in generating); the
prefill is one text of `prefill_tokens`; a training step is forward, backward and AdamW on the adapter for
`train_batch` texts of `train_tokens`. Layers take the fastest exact engine. The forward passes are also run with both
models in bfloat16, which is where the packed products of this machine's CPU compute.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.adapted import lora_config
from bench.baseline import Setting
from bench.calibration import calibration_of
from bench.data import CORPORA, Batch, evenly
from bench.measure.memory import static_memory
from bench.measure.speed import speed_group, time_quantize
from bench.measure.training import train_step_memory
from bench.train import Schedule, optimizer_of
from quant import Quantizer
from quant.lora import add_lora
from quant.modules import linears
from quant.quantizing import quantize_model

__all__ = ["speed_cell"]


def speed_cell(setting: Setting, quantizer: Quantizer) -> dict[str, Any]:
    """The record's `memory`, `training_memory` and `speed` groups."""
    p = setting.protocol
    wrapped = setting.task.wrap(setting.model, setting.seed)
    weights = {name: layer.weight.detach() for name, layer in linears(wrapped, p.skip).items()}
    known = calibration_of(setting, quantizer)
    seconds = time_quantize(quantizer, weights, known, repeats=p.speed_rounds, seconds=p.speed_seconds / 4)
    config = lora_config(setting)
    baseline = add_lora(wrapped, config)
    model = add_lora(quantize_model(wrapped, quantizer, skip=p.skip, calibration=known), config)
    batch = _ids(setting, p.train_batch, p.train_tokens)
    group = speed_group(
        baseline,
        model,
        inputs_b1=_inputs(_first(setting)),
        inputs_prefill=_inputs(_ids(setting, 1, p.prefill_tokens)),
        train_step=_stepper(setting, batch),
        halves=(_in_bf16(baseline), _in_bf16(model)),
        rounds=p.speed_rounds,
        quantize_seconds=seconds,
        seconds=p.speed_seconds,
    )
    parameters = [q for q in model.parameters() if q.requires_grad]
    model.train()
    memory = train_step_memory(
        model, lambda: setting.task.loss(model, batch), parameters, make_optimizer=lambda ps: _optimizer(setting, ps)
    )
    memory |= {"batch": p.train_batch, "tokens": batch.n_tokens}
    return {"speed": group, "training_memory": memory, "memory": static_memory(model.eval(), save=False, entropy=False)}


def _in_bf16(model: nn.Module) -> nn.Module:
    """A copy whose unquantized tensors and activations are bfloat16; what is quantized stays as it is stored."""
    return copy.deepcopy(model).bfloat16()


def _ids(setting: Setting, rows: int, tokens: int) -> Batch:
    """`rows` texts of exactly `tokens` tokens: held-out text, one after the other, with labels 0 and 1 in turn."""
    pool = CORPORA[setting.task.corpora[0]].examples("test")
    texts = [e.text for e in evenly(pool, min(len(pool), max(8, rows * tokens // 4)))]
    ids = [i for row in setting.model.tokenizer(texts)["input_ids"] for i in row]
    if len(ids) < rows * tokens:
        raise ValueError(f"{setting.task.name!r} has {len(ids)} tokens of text, {rows} x {tokens} are wanted")
    found = torch.tensor(ids[: rows * tokens]).view(rows, tokens)
    return Batch(found, torch.ones_like(found), torch.arange(rows) % 2).to(setting.device)


def _first(setting: Setting) -> Batch:
    """What a forward pass at batch 1 reads, `speed_batch` times."""
    rows = setting.protocol.speed_batch
    return _ids(setting, rows, 1 if setting.model.kind == "causal" else setting.protocol.sentence_tokens // 2)


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def _optimizer(setting: Setting, parameters: Any) -> torch.optim.Optimizer:
    p = setting.protocol
    return optimizer_of(parameters, Schedule(1, setting.rates.lora, p.weight_decay, p.warmup))


def _stepper(setting: Setting, batch: Batch) -> Callable[[nn.Module], None]:
    """One training step on the model it is given; each model has its own optimizer."""
    optimizers: dict[int, torch.optim.Optimizer] = {}

    def step(module: nn.Module) -> None:
        if id(module) not in optimizers:
            optimizers[id(module)] = _optimizer(setting, [q for q in module.parameters() if q.requires_grad])
        optimizer = optimizers[id(module)]
        module.train()
        setting.task.loss(module, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
