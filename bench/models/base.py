"""What a model of the benchmark is, and the table of sources it can come from.

A model is named by a *spec*: the name of a source ("minilm"), or a source and an argument ("path:DIR", "hf:NAME").
A source is one file of this package ending in `register(Source(...))`. Loading is offline for all but "hf".
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

__all__ = ["SOURCES", "Kind", "Model", "ModelError", "Source", "cache_folder", "package_folder", "register"]

Kind = Literal["encoder", "causal"]


class ModelError(ValueError):
    """A model cannot be had; the text names the spec and the remedy."""


@dataclass(frozen=True, eq=False)
class Model:
    """A pretrained backbone in eval mode, float32, on the CPU.

    `module` is a transformers model: of `AutoModel` without its pooler for an encoder (the head and the pooling are
    the benchmark's own), of `AutoModelForCausalLM` for a causal one. `note` is what a reader of its figures must know.
    """

    spec: str
    kind: Kind
    module: nn.Module
    tokenizer: Any
    note: str


@dataclass(frozen=True)
class Source:
    """Where models come from. Functions take the argument of the spec, "" where the source has none.

    `load` gives the model, `content` the files that decide it (their bytes are its fingerprint), `prepare` does the
    slow work that is done once. `takes` names the argument in help texts; "" means that the source takes none.
    """

    name: str
    idea: str
    load: Callable[[str], Model]
    content: Callable[[str], tuple[Path, ...]]
    prepare: Callable[[str], None] = lambda argument: None
    takes: str = ""
    recipe: str = ""  # changes when the same files are made into another model


SOURCES: dict[str, Source] = {}


def register(source: Source) -> Source:
    """Enter `source` in `SOURCES`; a name is registered once."""
    if source.name in SOURCES:
        raise ValueError(f"model source {source.name!r} is already registered")
    SOURCES[source.name] = source
    return source


def package_folder(package: str) -> Path:
    """The folder of an installed package, found without importing it. Raises ModelError when it is absent."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"the package {package!r} is not installed; run `make setup` to install the models and data")
    return Path(found.submodule_search_locations[0])


def cache_folder() -> Path:
    """Where prepared models, adapters and baseline outputs are kept: $QUANTBENCH_CACHE, or inside the checkout."""
    named = os.environ.get("QUANTBENCH_CACHE")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / ".cache" / "quantbench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
