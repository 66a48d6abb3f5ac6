"""What every order of adapting is made of: the adapter of a setting, that of the baseline, and quantized models.

What is judged, or trained, computes with dense decoded weights: exact, and fast for many tokens. Memory is that of
the packed model, which shares the stored tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.baseline import Setting, baseline_adapter, fit
from bench.calibration import calibration_of
from bench.provenance import commit, utc_now
from bench.tasks import Outputs
from quant import Quantizer
from quant.linear import QuantizedLinear
from quant.lora import LoRAConfig, add_lora
from quant.modules import replace_modules, share
from quant.quantizing import quantize_model

__all__ = [
    "Adapted",
    "decoded_model",
    "load_trained",
    "lora_config",
    "quantized_of",
    "trained_state",
    "with_baseline",
]


@dataclass(frozen=True, eq=False)
class Adapted:
    """An adapted module, to be judged; `training`, `training_memory` and `merge_audit` are
    groups of the record.

    `packed` is the same model as it is stored, where that is another one. `plain` is the un-adapted model with the
    decoded weights of `quantized`, by layer in `decoded` [n, k]. `said` are its outputs, if they are known
    already. `kin`: it stands in for the baseline, so KL to it has a meaning.
    """

    module: nn.Module
    packed: nn.Module | None = None
    quantized: nn.Module | None = None
    plain: nn.Module | None = None
    decoded: Mapping[str, Tensor] | None = None
    training: dict[str, Any] | None = None
    training_memory: dict[str, Any] | None = None
    merge_audit: dict[str, Any] | None = None
    said: Outputs | None = None
    kin: bool = False


def lora_config(setting: Setting) -> LoRAConfig:
    """The adapter that `setting` asks for; an encoder's head is trained with it."""
    p = setting.protocol
    also = ("head",) if setting.model.kind == "encoder" else ()
    return LoRAConfig(p.rank, p.alpha, p.dropout, p.targets, seed=setting.seed, also_train=also)


def with_baseline(module: nn.Module, setting: Setting) -> tuple[nn.Module, dict[str, Any]]:
    """`module` with the adapter of the baseline, and what its training was."""
    out = add_lora(module, lora_config(setting))
    tensors, extra = baseline_adapter(setting, lambda: _train_lora(setting))
    load_trained(out, tensors)
    return out, extra


def _train_lora(setting: Setting) -> tuple[dict[str, Tensor], dict[str, Any]]:
    module = add_lora(setting.task.wrap(setting.model, setting.seed), lora_config(setting))
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


def quantized_of(setting: Setting, module: nn.Module, quantizer: Quantizer, merged: bool = False) -> nn.Module:
    """`module` with its linear layers quantized; `merged`: its weights hold an adapter and are calibrated anew."""
    known = calibration_of(setting, quantizer, module if merged else None)
    return quantize_model(module, quantizer, skip=setting.protocol.skip, calibration=known)
