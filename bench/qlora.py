"""Orders that train a new adapter on a quantized base, for the same steps, on the same texts, from the same seeds.

    qlora                   the adapter starts at zero (Dettmers et al. 2023, arXiv 2305.14314)
    loftq, qpissa, eora     it starts from what the quantizer left: see `quant.init`
    qa-lora                 it reads sums over groups of inputs and merges into the zero points: see `quant.pooled`
    distill                 as `qlora`, trained on KL(baseline || model) of the logits in place of the task's loss

The learning rate is that of `lora`, but scaled down where the factors start large (see `rate_share`): at the full rate
LoftQ and QA-LoRA diverge in the first steps. `training.lr` is what was used.

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
from quant import Quantizer
from quant.init import INITS, quantize_with_lora
from quant.linear import QuantizedLinear
from quant.lora import LoRALayer, adapted, add_lora
from quant.modules import linears, share
from quant.pooled import PooledLoRALayer

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
    rate = setting.rates.lora * rate_share(module)
    training, memory = fit(setting, module, rate, measured=packed, loss=loss)
    training |= {"start": start, "objective": "task" if loss is None else "kl", "lr": rate}
    outputs, audit = None, None
    if audited is not None:
        outputs = said(setting, module, True, keep=True)
        audit = merge_audit(setting, module, audited, outputs)
    return Adapted(module, packed, training=training, training_memory=memory, merge_audit=audit, said=outputs, kin=True)


def rate_share(module: nn.Module) -> float:
    """The share of the learning rate at which the first step moves the weights no farther than that of `qlora`.

    A step of AdamW moves every entry of A [r, k] and B [n, r] by the rate, so the product by no more, in the Frobenius
    norm, than the rate times sqrt(r) (sqrt(n) ||A|| + sqrt(k) ||B||); with B = 0 and the A of `qlora`, ||A||^2 = r / 3,
    by r sqrt(n / 3). What a pooled adapter does counts once for each column of a group.
    """
    reach = plain = 0.0
    for layer in adapted(module).values():
        assert isinstance(layer.lora, LoRALayer | PooledLoRALayer)
        n, k, rank = layer.out_features, layer.in_features, layer.lora.config.rank
        a, b = float(layer.lora.A.detach().norm()), float(layer.lora.B.detach().norm())
        columns = k / layer.lora.A.shape[1]
        reach += rank**0.5 * columns**0.5 * (n**0.5 * a + layer.lora.A.shape[1] ** 0.5 * b)
        plain += rank * (n / 3) ** 0.5
    return min(1.0, plain / reach) if any_moved(module) else 1.0


def any_moved(module: nn.Module) -> bool:
    """Whether an adapter starts otherwise than that of `qlora`, at zero and not pooled."""
    loras = [layer.lora for layer in adapted(module).values()]
    return any(isinstance(lora, PooledLoRALayer) or bool(lora.B.detach().any()) for lora in loras)  # type: ignore[union-attr, operator]


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
    "qa-lora": _qa_lora,
    "distill": _distill,
}
