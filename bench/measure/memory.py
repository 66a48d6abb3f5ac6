"""The bytes of a model as it stands, counted from its stored tensors, and of the file they make.

Writing a whole model takes longer than all else here, so the file that is written, measured and removed holds the
quantized layers (with their biases) and the adapter, which is what differs between methods; "file_holds" says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from quant import PARTS, QuantizedTensor
from quant.entropy import entropy_bits
from quant.linear import QuantizedLinear
from quant.lora import adapted
from quant.model import model_parts, quantized_layers, save_model, saved_sizes

__all__ = ["file_sizes", "static_memory"]

NOTHING = "the model has no quantized layer"


def static_memory(
    model: nn.Module, *, folder: Path | None = None, save: bool = True, entropy: bool = True
) -> dict[str, Any]:
    """The record's `memory` group.

    The file is written below `folder` (default: the system's temporary folder) and removed; `save=False` and
    `entropy=False` leave out what takes longest, with a reason. `bits_per_weight` leaves out the per-tensor constants
    that `constants_bytes` states; `bits_per_weight_model` is all of `model_bytes` over all `n_weights`, the
    unquantized ones and the adapter included.
    """
    parts = dict.fromkeys((*PARTS, "adapter"), 0) | model_parts(model)
    weights = _distinct(layer.weight_qt for layer in quantized_layers(model).values())
    inside = {id(p) for m in model.modules() if isinstance(m, QuantizedLinear) for p in m.stored().values()}
    n_quantized = sum(w.numel for w in weights)
    n_adapter = sum(m.weight_qt.numel for m in _quantized_factors(model))
    n_others = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    quantized = sum(w.nbytes for w in weights)
    constants = sum(w.parts().get("constants", 0) for w in weights)
    model_bytes, n_weights = sum(parts.values()), n_quantized + n_adapter + n_others
    out: dict[str, Any] = {
        "parts_bytes": parts,
        "model_bytes": model_bytes,
        "quantized_bytes": quantized,
        "constants_bytes": constants,
        "n_quantized_weights": n_quantized,
        "n_weights": n_weights,
        "bits_per_weight": 8 * (quantized - constants) / n_quantized if n_quantized else None,
        "bits_per_weight_model": 8 * model_bytes / n_weights if n_weights else None,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    if not n_quantized:
        out["bits_per_weight_reason"] = NOTHING
    return out | _entropy(weights, entropy) | file_sizes(model, folder, save)


def file_sizes(model: nn.Module, folder: Path | None = None, save: bool = True) -> dict[str, Any]:
    """{file_bytes, file_header_bytes, file_holds} of the quantized layers and the adapter, really written.

    Raises RuntimeError if the file is not exactly the stored bytes plus its header.
    """
    out: dict[str, Any] = {"file_bytes": None, "file_header_bytes": None}
    kept = nn.Module()
    layers: dict[str, nn.Module] = {**quantized_layers(model)}
    layers |= {f"{name}.lora": layer.lora for name, layer in adapted(model).items()}
    for name, layer in layers.items():
        kept.add_module(name.replace(".", "__"), layer)
    if not save or not layers:
        return out | {"file_reason": "not asked for" if layers else f"{NOTHING} and no adapter"}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        size, header = saved_sizes(save_model(kept, place))
    stored = sum(model_parts(kept).values())
    if size != stored + header:
        raise RuntimeError(f"the file has {size} bytes, but {stored} are stored and its header has {header}")
    return {"file_bytes": size, "file_header_bytes": header, "file_holds": "the quantized layers and the adapter"}


def _distinct(weights: Iterable[QuantizedTensor]) -> list[QuantizedTensor]:
    """Each weight once, also where two layers share one."""
    return list({tuple(t.data_ptr() for t in w.stored().values()): w for w in weights}.values())


def _quantized_factors(model: nn.Module) -> list[QuantizedLinear]:
    return [m for layer in adapted(model).values() for m in layer.lora.modules() if isinstance(m, QuantizedLinear)]


def _entropy(weights: list[QuantizedTensor], wanted: bool) -> dict[str, Any]:
    """Bits per quantized weight if codes and masks took their order-0 entropy, layers weighted by their size."""
    if not weights or not wanted:
        return {"entropy_bits_per_weight": None, "entropy_reason": "not asked for" if weights else NOTHING}
    total = sum(entropy_bits(w) * w.numel for w in weights)
    return {"entropy_bits_per_weight": total / sum(w.numel for w in weights)}
