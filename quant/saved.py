"""A quantized model in a folder: safetensors plus a readable quantization.json, never pickle.

model.safetensors   every stored tensor once, under its name in the state dict
quantization.json   format version; size and sha256 of that file; the configuration of every quantized layer and
                    adapter; names that share a tensor
config.json         of a Hugging Face model, so that it can be rebuilt without a skeleton
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quant.core import METHODS, from_config
from quant.files import inside, read_header, read_json, read_tensors, sha256, write_tensors
from quant.linear import QuantizedLinear
from quant.lora import LinearWithLoRA, LoRAConfig, QuantizedLoRALayer, adapted, own
from quant.modules import replace_modules, share

__all__ = ["load_model", "save_model", "saved_sizes"]

VERSION = 1
WEIGHTS = "model.safetensors"
SETTINGS = "quantization.json"


def place(t: Tensor) -> tuple[int, int]:
    """Equal for two names of one tensor."""
    return (t.data_ptr(), t.nbytes) if t.nbytes and t.device.type != "meta" else (0, id(t))


def save_model(model: nn.Module, folder: str | Path) -> Path:
    """Write `model` to `folder` (see the module's docstring); `load_model` gives it back bit for bit."""
    folder = Path(folder)
    tensors, tied = _untied(model)
    path = write_tensors(folder, WEIGHTS, tensors)
    settings = {
        "version": VERSION,
        "file": {"name": WEIGHTS, "bytes": path.stat().st_size, "sha256": sha256(path)},
        "model": _class_name(model),
        "tied": tied,
        "layers": {name: _layer_settings(layer) for name, layer in _all_quantized(model).items()},
        "adapters": {name: _adapter_settings(layer) for name, layer in adapted(model).items()},
    }
    part = folder / f"{SETTINGS}.part"
    part.write_text(json.dumps(settings, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, folder / SETTINGS)
    if settings["model"] is not None:
        model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    return folder


def _untied(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of the state dict once each, and {other name: first name} for those that share one."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[int, int], str] = {}
    for name, t in model.state_dict(keep_vars=True).items():
        if place(t) in first:
            tied[name] = first[place(t)]
        else:
            first[place(t)] = name
            tensors[name] = t
    return tensors, tied


def _all_quantized(model: nn.Module) -> dict[str, QuantizedLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}


def _layer_settings(layer: QuantizedLinear) -> dict[str, Any]:
    dtype = None if layer.compute_dtype is None else str(layer.compute_dtype).removeprefix("torch.")
    return {
        "config": layer.config,
        "bias": layer.bias is not None,
        "engine": layer.engine,
        "compute_dtype": dtype,
        "trainable": list(layer.trainable),
    }


def _adapter_settings(layer: LinearWithLoRA) -> dict[str, Any]:
    config = layer.lora.config
    if layer.merged:
        raise ValueError("a merged adapter cannot be saved beside its base; unmerge() it, or merge_lora(model) first")
    quantized = isinstance(layer.lora, QuantizedLoRALayer)
    named = next((n for n, q in METHODS.items() if q == config.quantizer), None)
    if config.quantizer is not None and named is None and not quantized:
        raise ValueError(
            f"the adapter is seen through {config.quantizer}, which has no name to be saved by; "
            "register(name, quantizer) first"
        )
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return values | {"quantizer": named, "quantized": quantized}


def _class_name(model: nn.Module) -> str | None:
    """The transformers class of `model`, None for any other module."""
    known = type(model).__module__.startswith("transformers.") and hasattr(model, "config")
    return type(model).__name__ if known else None


def saved_sizes(folder: str | Path) -> tuple[int, int]:
    """Bytes of the saved weights file, and of its header: the first is the stored bytes plus the second."""
    path = inside(Path(folder), WEIGHTS)
    return path.stat().st_size, read_header(path)[1]


def load_model(folder: str | Path, skeleton: nn.Module | None = None) -> nn.Module:
    """The model saved in `folder`, bit for bit.

    `skeleton` is a model of the same architecture before quantization (its values are not used and it is not
    changed); without it a transformers model is built from config.json. Raises ValueError, naming file and tensor,
    for a file that was changed, damaged, or does not fit.
    """
    folder = Path(folder)
    path = inside(folder, SETTINGS)
    settings = read_json(path)
    if settings.get("version") != VERSION:
        raise ValueError(f"{path} has version {settings.get('version')!r}, this reads {VERSION}")
    try:
        tensors = read_tensors(folder, settings["file"]["name"], settings["file"]["sha256"])
        tensors |= {alias: tensors[first] for alias, first in settings["tied"].items()}
        model = share(skeleton) if skeleton is not None else _rebuild(folder, settings["model"])
        layers = {name: _layer(name, saved, tensors) for name, saved in settings["layers"].items()}
        model = _with_layers(model, layers, settings["adapters"])
    except (AttributeError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is damaged or of another model ({what}); save the model again") from error
    _fill(model, tensors, path)
    return model


def _rebuild(folder: Path, name: str | None) -> nn.Module:
    """An untrained model of the transformers class `name` with the configuration in `folder`."""
    import transformers

    cls = getattr(transformers, name, None) if name else None
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ValueError(f"{folder / SETTINGS} names no transformers model ({name!r}); pass a skeleton to load_model")
    inside(folder, "config.json")
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = cls(config)
    return model.train(False)


def _layer(name: str, saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedLinear:
    own_tensors = {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}
    bias = own_tensors.pop("bias", None)
    if (bias is not None) != saved["bias"]:
        raise ValueError(f"layer {name!r}: its bias is {'missing' if bias is None else 'left over'}")
    dtype = None if saved["compute_dtype"] is None else getattr(torch, saved["compute_dtype"])
    try:
        weight = from_config(saved["config"], {k.replace("__", "."): t for k, t in own_tensors.items()})
        return QuantizedLinear(weight, bias, saved["engine"], compute_dtype=dtype, trainable=tuple(saved["trainable"]))
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error


def _with_layers(model: nn.Module, layers: dict[str, QuantizedLinear], adapters: Mapping[str, Any]) -> nn.Module:
    """`model`, its linear layers replaced by the quantized and the adapted ones."""
    new: dict[str, nn.Module] = {}
    also: set[str] = set()
    for name, saved in adapters.items():
        settings = dict(saved)
        quantized, method = settings.pop("quantized"), settings.pop("quantizer")
        settings["targets"] = settings["targets"] if settings["targets"] == "all" else tuple(settings["targets"])
        also |= set(settings["also_train"])
        settings["also_train"] = tuple(settings["also_train"])
        config = LoRAConfig(**settings, quantizer=METHODS[method] if method else None)
        there = model.get_submodule(name)
        base = layers.pop(f"{name}.base", None) or (there.base if isinstance(there, LinearWithLoRA) else there)
        layer = LinearWithLoRA(base, config, name)  # type: ignore[arg-type]
        if quantized:
            layer.lora = QuantizedLoRALayer(config, layers.pop(f"{name}.lora.A"), layers.pop(f"{name}.lora.B"))
        new[name] = layer
    if new:
        model.requires_grad_(False)
    model = replace_modules(model, {**layers, **new})
    for name in also:
        own(model, name)
    return model.train(model.training)


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put `tensors` in the place of the parameters and buffers of `model`, in their own dtypes."""
    there = model.state_dict(keep_vars=True)
    if missing := sorted(set(there) - set(tensors)):
        raise ValueError(f"{path}: tensor {missing[0]!r} of the model was not saved ({len(missing)} missing)")
    if left := sorted(set(tensors) - set(there)):
        raise ValueError(f"{path}: tensor {left[0]!r} was saved, but the model has none ({len(left)} left over)")
    made: dict[tuple[int, int], nn.Parameter] = {}
    ready: dict[str, Tensor] = {}
    for name, old in there.items():
        t = tensors[name]
        if t.shape != old.shape:
            raise ValueError(f"{path}: tensor {name!r} is {list(t.shape)}, the model has {list(old.shape)}")
        if isinstance(old, nn.Parameter):
            t = made.setdefault(place(t), nn.Parameter(t, requires_grad=old.requires_grad))
        ready[name] = t
    model.load_state_dict(ready, strict=True, assign=True)
