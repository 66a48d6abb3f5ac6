"""The orders of `bench.schema.ORDERS`: how a model is adapted to a task, and where quantization comes in.

Beside those that the names explain:

    untouched   encoder: the head is the logistic regression on frozen features; causal: the model as it is
    features    the backbone is frozen; an encoder's linear head is trained by the loop of every other order. The head
                of a causal model is its embedding, so its final norm is trained: a weight for every feature
    prompt      virtual tokens before the input (Lester et al. 2021, arXiv 2104.08691), by the peft library; an
                encoder's head is trained with them

Those that train a new adapter on a quantized base are in `bench.qlora`, on one that is pruned meanwhile in
`bench.gradual`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.adapted import Adapted, decoded_model, quantized_of, with_baseline
from bench.baseline import Setting, fit, with_logistic_head
from bench.gradual import adapt_gradually
from bench.qlora import QLORA
from bench.tasks.classification import Classification
from quant import Quantizer, UnsupportedError
from quant.lora import merge_lora
from quant.modules import share

__all__ = ["ADAPT", "adapt"]

FINAL_NORMS = ("model.norm", "model.final_layernorm", "transformer.ln_f", "gpt_neox.final_layer_norm")


def adapt(order: str, setting: Setting, quantizer: Quantizer) -> Adapted:
    """The model of `setting` adapted in `order`; `quantizer` counts for the orders that quantize."""
    if order not in ADAPT:
        raise ValueError(f"order {order!r} adapts nothing; known: {', '.join(ADAPT)}")
    return ADAPT[order](setting, quantizer)


def _wrapped(setting: Setting) -> nn.Module:
    return setting.task.wrap(setting.model, setting.seed)


def _untouched(setting: Setting, quantizer: Quantizer) -> Adapted:
    frozen = share(with_logistic_head(setting)).requires_grad_(False)
    if isinstance(setting.task, Classification):
        _head_of(frozen).requires_grad_(True)
    return Adapted(frozen)


def _fitted(setting: Setting, module: nn.Module, lr: float) -> Adapted:
    training, memory = fit(setting, module, lr)
    return Adapted(module, training=training, training_memory=memory)


def _features(setting: Setting, quantizer: Quantizer) -> Adapted:
    module = copy.deepcopy(_wrapped(setting)).requires_grad_(False)
    _head_of(module).requires_grad_(True)
    return _fitted(setting, module, setting.rates.head)


def _head_of(module: nn.Module) -> nn.Module:
    names = ("head", *FINAL_NORMS)
    known = dict(module.named_modules())
    found: nn.Module | None = next((known[name] for name in names if name in known), None)
    if found is None:
        raise UnsupportedError(f"{type(module).__name__} has no final norm to train: none of {', '.join(FINAL_NORMS)}")
    return found


def _full(setting: Setting, quantizer: Quantizer) -> Adapted:
    module = copy.deepcopy(_wrapped(setting)).requires_grad_(True)
    return _fitted(setting, module, setting.rates.full)


def _prompt(setting: Setting, quantizer: Quantizer) -> Adapted:
    from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model

    count = setting.protocol.virtual_tokens
    kind = TaskType.CAUSAL_LM if setting.model.kind == "causal" else TaskType.FEATURE_EXTRACTION
    config = PromptTuningConfig(
        task_type=kind, num_virtual_tokens=count, prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB
    )
    module = copy.deepcopy(_wrapped(setting))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        torch.manual_seed(setting.seed)
        if setting.model.kind == "causal":
            module = _WithoutPrompt(get_peft_model(module, config), count)  # type: ignore[arg-type]
        else:
            module.backbone = get_peft_model(module.backbone, config)  # type: ignore[arg-type]
    return _fitted(setting, module, setting.rates.prompt)


class _WithoutPrompt(nn.Module):
    """A causal model behind virtual tokens, its logits [m, t, v] being those of the real tokens."""

    def __init__(self, inner: nn.Module, count: int) -> None:
        super().__init__()
        self.inner, self.count = inner, count

    def forward(self, **inputs: Any) -> Any:
        out = self.inner(**inputs)
        out.logits = out.logits[:, self.count :]
        return out


def _lora(setting: Setting, quantizer: Quantizer) -> Adapted:
    module, extra = with_baseline(_wrapped(setting), setting)
    return Adapted(module, training=extra["training"], training_memory=extra["training_memory"], kin=True)


def _beneath(setting: Setting, quantizer: Quantizer) -> Adapted:
    quantized = quantized_of(setting, _wrapped(setting), quantizer)
    plain, decoded = decoded_model(quantized)
    module, _ = with_baseline(plain, setting)
    packed, _ = with_baseline(quantized, setting)
    return Adapted(module, packed, quantized, plain, decoded, kin=True)


def _merge(setting: Setting, quantizer: Quantizer) -> Adapted:
    module, _ = with_baseline(_wrapped(setting), setting)
    packed = quantized_of(setting, merge_lora(module), quantizer, merged=True)
    return Adapted(decoded_model(packed)[0], packed, kin=True)


ADAPT: dict[str, Callable[[Setting, Quantizer], Adapted]] = {
    "untouched": _untouched,
    "features": _features,
    "prompt": _prompt,
    "full": _full,
    "lora": _lora,
    "beneath": _beneath,
    "gradual": adapt_gradually,
    "merge": _merge,
} | QLORA
