"""Pooled adapters merged into the zero points of their bases: the model stays quantized, and says the same."""

from __future__ import annotations

import torch
from torch import nn

from quant.linear import QuantizedLinear
from quant.lora import adapted
from quant.modules import replace_modules, share
from quant.pooled import PooledLoRALayer, merged_into_zeros

__all__ = ["merge_into_zeros"]


def merge_into_zeros(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of `model` with quantized layers in place of those with pooled adapters, the zeros stored in `dtype`.

    Raises ValueError, naming the layer, for an adapter of another kind: only a pooled one merges without error.
    """
    copied = share(model)
    layers = adapted(copied)
    if not layers:
        raise ValueError("the model has no adapters; add_lora(model, LoRAConfig(pooled=True)) first")
    new: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        if not isinstance(layer.lora, PooledLoRALayer) or not isinstance(layer.base, QuantizedLinear):
            raise ValueError(f"layer {name!r}: its adapter is not pooled; merge_lora(model) gives dense weights")
        weight = merged_into_zeros(layer.base.weight_qt, layer.lora.update().detach(), dtype)
        new[name] = QuantizedLinear(
            weight, layer.base.bias, layer.base.engine, compute_dtype=layer.base.compute_dtype
        ).train(layer.training)
    return replace_modules(copied, new)
