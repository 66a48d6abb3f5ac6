"""The orders of `bench.schema.ORDERS`: how a model is adapted to a task, and where quantization comes in.

Beside those that the names explain:

    untouched   encoder: the head is the logistic regression on frozen features; causal: the model as it is
    features    the backbone is frozen; an encoder's linear head is trained by the loop of every other order. The head
                of a causal model is its embedding, so its final norm is trained: a weight for every feature
    prompt      virtual tokens before the input (Lester et al. 2021, arXiv 2104.08691), by the peft library; an
                encoder's head is trained with them
    qlora       fields of the quantized weight that its method calls trainable learn along with the adapter

What is judged, or trained, computes with dense decoded weights: exact, and fast for many tokens. Memory is that of
the packed model, which shares the stored tensors.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.baseline import Setting, baseline_adapter, fit, with_logistic_head
from bench.calibration import calibration_of
from bench.provenance import commit, utc_now
from bench.tasks.classification import Classification
from quant import Quantizer, UnsupportedError
from quant.linear import QuantizedLinear, quantize_model
from quant.lora import LoRAConfig, add_lora, merge_lora
from quant.modules import replace_modules, share

__all__ = ["ADAPT", "Adapted", "adapt", "decoded_model", "lora_config"]

FINAL_NORMS = ("model.norm", "model.final_layernorm", "transformer.ln_f", "gpt_neox.final_layer_norm")


@dataclass(frozen=True, eq=False)
class Adapted:
    """An adapted module, to be judged; `training` and `training_memory` are groups of the record.

    `packed` is the same model as it is stored, where that is another one. `plain` is the un-adapted model with the
    decoded weights of `quantized`, by layer in `decoded` [n, k]. `kin`: it stands in for the baseline, so KL to it
    has a meaning.
    """

    module: nn.Module
    packed: nn.Module | None = None
    quantized: nn.Module | None = None
    plain: nn.Module | None = None
    decoded: Mapping[str, Tensor] | None = None
    training: dict[str, Any] | None = None
    training_memory: dict[str, Any] | None = None
    kin: bool = False


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


def lora_config(setting: Setting) -> LoRAConfig:
    """The adapter that `setting` asks for; an encoder's head is trained with it."""
    p = setting.protocol
    also = ("head",) if setting.model.kind == "encoder" else ()
    return LoRAConfig(p.rank, p.alpha, p.dropout, p.targets, seed=setting.seed, also_train=also)


def _with_baseline(module: nn.Module, setting: Setting) -> tuple[nn.Module, dict[str, Any]]:
    """`module` with the adapter of the baseline, and what its training was."""
    out = add_lora(module, lora_config(setting))
    tensors, extra = baseline_adapter(setting, lambda: _train_lora(setting))
    load_trained(out, tensors)
    return out, extra


def _train_lora(setting: Setting) -> tuple[dict[str, Tensor], dict[str, Any]]:
    module = add_lora(_wrapped(setting), lora_config(setting))
    training, memory = fit(setting, module, setting.rates.lora)
    training |= {"trained_utc": utc_now(), "trained_commit": commit()[0]}  # a later record may reuse the adapter
    return trained_state(module), {"training": training, "training_memory": memory}


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def load_trained(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the trainable parameters of `module`; the names must be the same."""
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if own.keys() != tensors.keys():
        raise ValueError(f"the stored adapter does not fit: it differs in {sorted(own.keys() ^ tensors.keys())[:4]}")
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(tensors[name])


def _lora(setting: Setting, quantizer: Quantizer) -> Adapted:
    module, extra = _with_baseline(_wrapped(setting), setting)
    return Adapted(module, training=extra["training"], training_memory=extra["training_memory"], kin=True)


class Rounding(nn.Linear):
    """A plain linear layer that sees x as `activations` rounds it; the gradient passes as if it did not."""

    activations: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + (self.activations(x) - x).detach())


def decoded_model(quantized: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of `quantized` with plain linear layers in place of the quantized ones, and their weights [n, k] by name.

    Each layer is decoded once; one whose product rounds x still does. All else shares memory with `quantized`.
    """
    plain = share(quantized)
    decoded: dict[str, Tensor] = {}
    new: dict[str, nn.Module] = {}
    for name, layer in plain.named_modules():
        if isinstance(layer, QuantizedLinear):
            decoded[name] = layer.weight_qt.decode()
            kind = Rounding if layer.weight_qt.rounds else nn.Linear
            dense = kind(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
            if isinstance(dense, Rounding):
                dense.activations = layer.weight_qt.activations
            dense.weight = nn.Parameter(decoded[name], requires_grad=False)
            dense.register_parameter("bias", layer.bias)
            new[name] = dense.train(layer.training)
    return replace_modules(plain, new), decoded


def _quantized(setting: Setting, module: nn.Module, quantizer: Quantizer, merged: bool = False) -> nn.Module:
    known = calibration_of(setting, quantizer, module if merged else None)
    return quantize_model(module, quantizer, skip=setting.protocol.skip, calibration=known)


def _beneath(setting: Setting, quantizer: Quantizer) -> Adapted:
    quantized = _quantized(setting, _wrapped(setting), quantizer)
    plain, decoded = decoded_model(quantized)
    module, _ = _with_baseline(plain, setting)
    packed, _ = _with_baseline(quantized, setting)
    return Adapted(module, packed, quantized, plain, decoded, kin=True)


def _qlora(setting: Setting, quantizer: Quantizer) -> Adapted:
    packed = add_lora(_quantized(setting, _wrapped(setting), quantizer), lora_config(setting))
    for layer in _quantized_layers(packed):
        for name in layer.trainable:
            layer.stored()[name].requires_grad_(True)
    module = share(packed)
    for layer in _quantized_layers(module):
        layer.engine = "dense"
    training, memory = fit(setting, module, setting.rates.lora, measured=packed)
    return Adapted(module, packed, training=training, training_memory=memory, kin=True)


def _quantized_layers(module: nn.Module) -> list[QuantizedLinear]:
    return [m for m in module.modules() if isinstance(m, QuantizedLinear)]


def _merge(setting: Setting, quantizer: Quantizer) -> Adapted:
    module, _ = _with_baseline(_wrapped(setting), setting)
    packed = _quantized(setting, merge_lora(module), quantizer, merged=True)
    return Adapted(decoded_model(packed)[0], packed, kin=True)


ADAPT: dict[str, Callable[[Setting, Quantizer], Adapted]] = {
    "untouched": _untouched,
    "features": _features,
    "prompt": _prompt,
    "full": _full,
    "lora": _lora,
    "beneath": _beneath,
    "qlora": _qlora,
    "merge": _merge,
}
