"""The linear layers of a model: which are quantized, and how others take their place in a copy that shares memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

__all__ = ["DEFAULT_SKIP", "linears", "replace_modules", "share", "skipped"]

# embeddings, output heads and the pooler that feeds them, and the factors of a LoRA made by the peft library
DEFAULT_SKIP = (
    "*embeddings",
    "embed*",
    "lm_head",
    "head",
    "*_head",
    "cls",
    "score",
    "classifier",
    "pre_classifier",
    "qa_outputs",
    "pooler",
    "lora_*",
)


def skipped(name: str, skip: tuple[str, ...]) -> bool:
    """Whether any component of the dotted `name` matches a pattern of `skip`, or the whole name does.

    >>> skipped("bert.pooler.dense", ("pooler",)), skipped("model.layers.0.mlp.up_proj", ("lm_head", "*.down_proj"))
    (True, False)
    """
    return any(fnmatchcase(part, pattern) for part in (name, *name.split(".")) for pattern in skip)


def linears(model: nn.Module, skip: tuple[str, ...] = DEFAULT_SKIP) -> dict[str, nn.Linear]:
    """The linear layers of `model` that are to be quantized, by qualified name in the order of the model.

    Left out are names that match `skip` (see `skipped`), and the output projection of `nn.MultiheadAttention`, whose
    weight is read without calling the layer.
    """
    inert = torch.nn.modules.linear.NonDynamicallyQuantizableLinear
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear) and not isinstance(module, inert) and not skipped(name, skip)
    }


def share(model: nn.Module) -> nn.Module:
    """A copy of the module tree whose parameters and buffers share memory with the original's.

    The parameters are new objects: freezing or training flags, and gradients, are the copy's own.
    """
    memo: dict[int, Any] = {id(b): b for b in model.buffers()}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(p.detach(), requires_grad=p.requires_grad)
    return copy.deepcopy(model, memo)


def replace_modules(model: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    """Put each module of `new` at its qualified name in `model`, which is changed; the root's name is ""."""
    for name, module in new.items():
        if not name:
            return module
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module)
    return model
