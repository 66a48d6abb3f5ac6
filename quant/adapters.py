"""Adapters in the file format of the peft library, both ways.

adapter_config.json         peft_type LORA, r, lora_alpha, lora_dropout, target_modules, modules_to_save, ...
adapter_model.safetensors   base_model.model.<layer>.lora_A.weight [r, k], .lora_B.weight [n, r], and the whole
                            modules trained beside them (a head) as base_model.model.<module>.<parameter>

An adapter that started from `quant.init` belongs to its quantized base and to no other: peft must be given a model that
holds the dequantized weights. `init_lora_weights` says how peft would begin, not what the file holds, and stays true.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quant.files import inside, read_json, read_tensors, write_tensors
from quant.lora import LoRAConfig, LoRALayer, adapted, add_lora

__all__ = ["load_adapter", "save_adapter"]

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
PREFIX = "base_model.model."
# options of peft that change the arithmetic, with the one value that this reads
PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "use_qalora": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "lora_bias": (False, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
}


def save_adapter(model: nn.Module, folder: str | Path) -> Path:
    """Write the adapters of `model` to `folder` as the peft library would. Quantized factors have no such format."""
    folder = Path(folder)
    layers = adapted(model)
    if not layers:
        raise ValueError("the model has no adapters; add_lora(model, config) first")
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if not isinstance(layer.lora, LoRALayer):
            raise ValueError(
                f"layer {name!r}: peft has no format for quantized or pooled factors; use save_model(model, folder)"
            )
        tensors[f"{PREFIX}{name}.lora_A.weight"] = layer.lora.A
        tensors[f"{PREFIX}{name}.lora_B.weight"] = layer.lora.B
    config = next(iter(layers.values())).lora.config
    for module in config.also_train:
        for name, p in model.named_parameters():
            if f".{module}." in f".{name}":
                tensors[PREFIX + name] = p.clone()
    settings = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": getattr(getattr(model, "config", None), "name_or_path", None) or None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted(layers),
        "modules_to_save": list(config.also_train) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    write_tensors(folder, WEIGHTS, tensors)
    part = folder / f"{SETTINGS}.part"
    part.write_text(json.dumps(settings, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, folder / SETTINGS)
    return folder


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """A copy of `model` (dense or quantized, without adapters) with the adapter saved in `folder`.

    Raises ValueError for an adapter of another kind than plain LoRA, and for tensors that do not fit the model.
    """
    folder = Path(folder)
    path = inside(folder, SETTINGS)
    saved = read_json(path)
    if saved.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type must be 'LORA', got {saved.get('peft_type')!r}")
    for option, allowed in PLAIN.items():
        if option in saved and saved[option] not in allowed:
            raise ValueError(f"{path}: {option}={saved[option]!r} is not supported, only {allowed[0]!r}")
    tensors = {k.removeprefix(PREFIX): t for k, t in read_tensors(folder, WEIGHTS).items()}
    names = sorted({k.removesuffix(".lora_A.weight") for k in tensors if k.endswith(".lora_A.weight")})
    if not names:
        raise ValueError(f"{folder / WEIGHTS} holds no lora_A")
    config = LoRAConfig(
        rank=saved["r"],
        alpha=saved["lora_alpha"],
        dropout=saved.get("lora_dropout") or 0.0,
        targets=tuple(names),
        also_train=tuple(saved.get("modules_to_save") or ()),
    )
    out = add_lora(model, config, skip=())
    for name, layer in adapted(out).items():
        if name not in names:
            raise ValueError(f"{path}: the adapter has no factors for layer {name!r}")
        assert isinstance(layer.lora, LoRALayer)
        layer.lora.config = dataclasses.replace(config)
        for factor, key in ((layer.lora.A, f"{name}.lora_A.weight"), (layer.lora.B, f"{name}.lora_B.weight")):
            _put(factor, tensors.pop(key, None), folder / WEIGHTS, key)
    there = dict(out.named_parameters())
    for key in list(tensors):
        if key not in there or not there[key].requires_grad:
            raise ValueError(f"{folder / WEIGHTS}: tensor {key!r} does not belong to this model")
        _put(there[key], tensors.pop(key), folder / WEIGHTS, key)
    return out


def _put(place: nn.Parameter, t: Tensor | None, path: Path, key: str) -> None:
    if t is None or t.shape != place.shape:
        raise ValueError(
            f"{path}: tensor {key!r} must be {list(place.shape)}, got {None if t is None else list(t.shape)}"
        )
    place.data.copy_(t)
