"""The bytes of a model by part, counted from the tensors that it stores."""

from __future__ import annotations

from collections import Counter

from torch import nn

from quant.linear import QuantizedLinear
from quant.lora import adapted
from quant.saved import load_model, place, save_model, saved_sizes

__all__ = ["bits_per_weight", "load_model", "model_parts", "quantized_numel", "save_model", "saved_sizes"]


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The quantized layers of the model, those that make up an adapter left out, by qualified name."""
    inner = {id(m) for layer in adapted(model).values() for m in layer.lora.modules()}
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear) and id(m) not in inner}


def model_parts(model: nn.Module) -> dict[str, int]:
    """Bytes of everything that is stored, by part of `quant.PARTS` plus "adapter"; shared tensors count once.

    "unquantized" holds embeddings, norms, biases, heads and buffers beside the dense weights.
    """
    out: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    for layer in quantized_layers(model).values():
        tensors = list(layer.stored().values())
        if not all(place(t) in seen for t in tensors):
            out.update(layer.weight_qt.parts())
        seen |= {place(t) for t in tensors}
    adapters = [p for layer in adapted(model).values() for p in layer.lora.parameters()]
    rest = list(model.state_dict(keep_vars=True).values())
    for part, tensors in (("adapter", adapters), ("unquantized", rest)):
        for t in tensors:
            if place(t) not in seen:
                out[part] += t.nbytes
                seen.add(place(t))
    return dict(out)


def quantized_numel(model: nn.Module) -> int:
    """Weights that are stored quantized."""
    return sum(layer.in_features * layer.out_features for layer in quantized_layers(model).values())


def bits_per_weight(model: nn.Module) -> float:
    """Stored bits per quantized weight, per-tensor constants left out (see `QuantizedTensor.bits_per_weight`)."""
    weights = [layer.weight_qt for layer in quantized_layers(model).values()]
    if not weights:
        raise ValueError("the model has no quantized layer")
    stored = sum(w.nbytes - w.parts().get("constants", 0) for w in weights)
    return 8 * stored / sum(w.numel for w in weights)
