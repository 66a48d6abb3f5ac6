"""What merging a trained adapter costs: the weight that acts on x, E = Q + (alpha / rank) B A, against what is stored.

    original      bfloat16(W + delta): into the unquantized weight, which the adapter was not trained on
    dequantized   bfloat16(Q + delta): into the decoded weight, at 16 bits
    requantized   q(Q + delta): the method again on the sum, which gets the memory back
    zeros         a pooled adapter in the zero points of its base, as float32, and `zeros16` as float16

Each way gives `relative_error`, sqrt(sum |stored - E|^2 / sum |E|^2) over the adapted layers, the same of each layer,
and the metrics of the merged model paired with the unmerged one: differences and KL are to it, not to the baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.adapted import decoded_model
from bench.baseline import Setting
from bench.calibration import calibration_of
from bench.judge import without_items
from bench.tasks import Outputs
from quant import Quantizer
from quant.linear import QuantizedLinear
from quant.lora import adapted, merge_lora
from quant.merging import merge_into_zeros
from quant.modules import linears, replace_modules, share
from quant.pooled import PooledLoRALayer
from quant.quantizing import quantize_model

__all__ = ["merge_audit", "ways"]

Weights = Mapping[str, Tensor]


def merge_audit(setting: Setting, module: nn.Module, quantizer: Quantizer, unmerged: Outputs) -> dict[str, Any]:
    """The record's group: for each way of merging the adapters of `module`, its errors and metrics.

    `unmerged` are the outputs of `module`, those that others need to be compared with it included.
    """
    effective = {name: layer.merged_weight() for name, layer in adapted(module).items()}
    task, p = setting.task, setting.protocol
    out: dict[str, Any] = {}
    for way, merge in ways(setting, module, quantizer).items():
        merged = merge()
        weights = {name: _weight(merged.get_submodule(name)) for name in effective}
        figures = task.figures(task.outputs(merged, setting.model, p, unmerged), unmerged, p, True)
        out[way] = errors(effective, weights) | {"metrics": without_items(figures)}
    return out


def ways(setting: Setting, module: nn.Module, quantizer: Quantizer) -> dict[str, Callable[[], nn.Module]]:
    """By name, what makes the model that holds the merged weights."""
    layers = adapted(module)
    original = linears(setting.task.wrap(setting.model, setting.seed), setting.protocol.skip)

    def onto(weights: Weights) -> nn.Module:
        new: dict[str, nn.Module] = {}
        for name, layer in layers.items():
            dense = nn.Linear(layer.in_features, layer.out_features, layer.base.bias is not None, device="meta")
            stored = (weights[name] + layer.lora.delta().detach()).to(torch.bfloat16)
            dense.weight = nn.Parameter(stored.float(), requires_grad=False)  # stored in 16 bits, multiplied in 32
            dense.register_parameter("bias", layer.base.bias)
            new[name] = dense
        return replace_modules(share(module), new)

    def again() -> nn.Module:
        known = calibration_of(setting, quantizer)
        merged = quantize_model(merge_lora(module), quantizer, skip=setting.protocol.skip, calibration=known)
        return decoded_model(merged)[0]

    out: dict[str, Callable[[], nn.Module]] = {
        "original": lambda: onto({name: original[name].weight.detach().float() for name in layers}),
        "dequantized": lambda: onto({name: _weight(layer.base) for name, layer in layers.items()}),
        "requantized": again,
    }
    if all(isinstance(layer.lora, PooledLoRALayer) for layer in layers.values()):
        out["zeros"] = lambda: decoded_model(merge_into_zeros(module))[0]
        out["zeros16"] = lambda: decoded_model(merge_into_zeros(module, torch.float16))[0]
    return out


def errors(effective: Weights, stored: Weights) -> dict[str, Any]:
    """`relative_error` over all layers, and of each in `layers`; of a weight of zeros it is null."""
    noise = {name: float((stored[name] - weight).square().sum()) for name, weight in effective.items()}
    signal = {name: float(weight.square().sum()) for name, weight in effective.items()}
    layers = {name: math.sqrt(noise[name] / signal[name]) if signal[name] else None for name in effective}
    total = sum(signal.values())
    return {"relative_error": math.sqrt(sum(noise.values()) / total) if total else None, "layers": layers}


def _weight(layer: nn.Module) -> Tensor:
    """What a dense or quantized layer multiplies with, [n, k] float32."""
    if isinstance(layer, QuantizedLinear):
        return layer.weight_qt.decode()
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach().float()
