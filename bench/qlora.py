"""Orders that train a new adapter on a quantized base, for the same steps, on the same texts, from the same seeds.

    qlora                   the adapter starts at zero (Dettmers et al. 2023, arXiv 2305.14314)
    loftq, qpissa, eora, lq it starts from what the quantizer left: see `quant.init`
    chained                 the same layer after layer, what earlier layers lost included: see `quant.init.sequence`
    qa-lora                 it reads sums over groups of inputs and merges into the zero points: see `quant.pooled`
    distill                 as `qlora`, trained on KL(baseline || model) of the logits in place of the task's loss

The learning rate is that of `lora`, but factors that start large have a share of it (see `bench.pace`): at the full
rate LoftQ and QA-LoRA diverge in the first steps. `training.lr` is the rate, `lr_a` and `lr_b` are the means over the
layers of what their factors had.

Fields of the quantized weight that its method calls trainable learn along with the adapter. The record's
`training.start` holds the metrics before the first step; an encoder's head is untrained then, as in `lora`, and what
its metrics say of the base is the distance of the embeddings alone. `relative_error` is that of the weights,
sqrt(sum |W - Q - B A|^2 / sum |W|^2) over the adapted layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.adapted import Adapted, lora_config, quantized_of, with_baseline
from bench.baseline import Setting, fit
from bench.calibration import calibration_of
from bench.data import Batch
from bench.judge import judged, said, without_items
from bench.merge_audit import merge_audit
from bench.pace import shares
from quant import Quantizer
from quant.init import INITS, quantize_with_lora, start_in_sequence
from quant.linear import QuantizedLinear
from quant.lora import adapted, add_lora
from quant.modules import linears, share

__all__ = ["QLORA", "distilled", "start_of"]

Loss = Callable[[nn.Module, Batch], Tensor]


def _trained(
    setting: Setting, packed: nn.Module, loss: Loss | None = None, audited: Quantizer | None = None
) -> Adapted:
    """`packed`, adapters on quantized layers, trained; its merging is audited with the quantizer `audited`."""
    for layer in _quantized_layers(packed):
        for name in layer.trainable:
            layer.stored()[name].requires_grad_(True)
    module = share(packed)
    for layer in _quantized_layers(module):
        layer.engine = "dense"
    start = start_of(setting, module)
    rate, slower = setting.rates.lora, shares(module)
    training, memory = fit(setting, module, rate, measured=packed, loss=loss, shares=slower)
    training |= {"start": start, "objective": "task" if loss is None else "kl", "lr": rate}
    for factor in ("A", "B"):
        used = [slower.get(getattr(layer.lora, factor), 1.0) for layer in adapted(module).values()]
        training[f"lr_{factor.lower()}"] = rate * sum(used) / len(used)
    outputs, audit = None, None
    if audited is not None:
        outputs = said(setting, module, True, keep=True)
        audit = merge_audit(setting, module, audited, outputs)
    return Adapted(module, packed, training=training, training_memory=memory, merge_audit=audit, said=outputs, kin=True)


def _quantized_layers(module: nn.Module) -> list[QuantizedLinear]:
    return [m for m in module.modules() if isinstance(m, QuantizedLinear)]


def start_of(setting: Setting, module: nn.Module) -> dict[str, Any]:
    """`training.start` of the record."""
    original = linears(setting.task.wrap(setting.model, setting.seed), setting.protocol.skip)
    signal = noise = 0.0
    for name, layer in adapted(module).items():
        weight = original[name].weight.detach().float()
        signal += float(weight.square().sum())
        noise += float((layer.merged_weight() - weight).square().sum())
    return without_items(judged(setting, module, True, module)) | {"relative_error": math.sqrt(noise / signal)}


def _qlora(setting: Setting, quantizer: Quantizer) -> Adapted:
    base = quantized_of(setting, setting.task.wrap(setting.model, setting.seed), quantizer)
    return _trained(setting, add_lora(base, lora_config(setting)), audited=quantizer)


def _started(init: str, setting: Setting, quantizer: Quantizer) -> Adapted:
    wrapped, skip = setting.task.wrap(setting.model, setting.seed), setting.protocol.skip
    known = calibration_of(setting, quantizer, also=INITS[init].needs)
    packed = quantize_with_lora(wrapped, quantizer, lora_config(setting), init, known, skip=skip)
    return _trained(setting, packed)


def _chained(setting: Setting, quantizer: Quantizer) -> Adapted:
    packed = start_in_sequence(
        setting.task.wrap(setting.model, setting.seed),
        quantizer,
        lora_config(setting),
        all_texts(setting),
        forward=setting.task.forward,
        mask=lambda batch: batch.attention_mask,
        skip=setting.protocol.skip,
    )
    return _trained(setting, packed)


def all_texts(setting: Setting) -> Batch:
    """The texts of the calibration in a single batch."""
    p = setting.protocol
    (batch,) = setting.task.calibration_batches(setting.model, p, max(p.calibration_texts, p.calibration_windows))
    return batch.to(setting.device)


def _qa_lora(setting: Setting, quantizer: Quantizer) -> Adapted:
    base = quantized_of(setting, setting.task.wrap(setting.model, setting.seed), quantizer)
    config = dataclasses.replace(lora_config(setting), pooled=True)
    return _trained(setting, add_lora(base, config), audited=quantizer)


def _distill(setting: Setting, quantizer: Quantizer) -> Adapted:
    base = quantized_of(setting, setting.task.wrap(setting.model, setting.seed), quantizer)
    teacher, _ = with_baseline(setting.task.wrap(setting.model, setting.seed), setting)
    return _trained(setting, add_lora(base, lora_config(setting)), loss=distilled(setting, teacher))


def distilled(setting: Setting, teacher: nn.Module, share_of_task: float = 0.0) -> Loss:
    """The loss (1 - s) KL(teacher || model) + s task, s = `share_of_task`, of the logits for a batch."""
    if not 0 <= share_of_task <= 1:
        raise ValueError(f"share_of_task must be from 0 to 1, got {share_of_task}")
    teacher.eval()
    task = setting.task

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            reference = task.forward(teacher, batch)
        out = task.divergence(task.forward(module, batch), reference)
        return out if not share_of_task else (1 - share_of_task) * out + share_of_task * task.loss(module, batch)

    return loss


QLORA: dict[str, Callable[[Setting, Quantizer], Adapted]] = {
    "qlora": _qlora,
    "loftq": partial(_started, "loftq"),
    "qpissa": partial(_started, "qpissa"),
    "eora": partial(_started, "eora"),
    "lq": partial(_started, "lq"),
    "chained": _chained,
    "qa-lora": _qa_lora,
    "distill": _distill,
}
