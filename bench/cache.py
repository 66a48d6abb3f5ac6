"""Tensors that are computed once and used by many cells: trained adapters, outputs of the baseline.

An entry is a safetensors file and, beside it, a JSON file with what else belongs to it and the sha256 of the former;
the JSON is written last, both by renaming, so a half-written entry is never read and a damaged one is made again. The
name of an entry is a hash of all that decides its content.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.models import cache_folder
from bench.models.fingerprint import file_digest

__all__ = ["Entry", "cached", "entry_path"]

Entry = tuple[dict[str, Tensor], dict[str, Any]]


def entry_path(kind: str, parts: Mapping[str, Any]) -> Path:
    """Where the entry of `kind` decided by `parts` (JSON values) is kept, without a suffix."""
    text = json.dumps(parts, sort_keys=True)
    return cache_folder() / kind / hashlib.sha256(text.encode()).hexdigest()[:32]


def cached(kind: str, parts: Mapping[str, Any], make: Callable[[], Entry]) -> Entry:
    """The entry of `kind` decided by `parts`: read when it is there and whole, made by `make` and kept otherwise."""
    path = entry_path(kind, parts)
    found = _read(path)
    if found is not None:
        return found
    tensors, extra = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    _replace(path.with_suffix(".safetensors"), lambda scratch: save_file(stored, scratch))
    digest = file_digest(path.with_suffix(".safetensors"))
    text = json.dumps({"sha256": digest, "parts": dict(parts), "extra": extra}, indent=1)
    _replace(path.with_suffix(".json"), lambda scratch: Path(scratch).write_text(text, encoding="utf-8"))
    return tensors, extra


def _read(path: Path) -> Entry | None:
    """The entry at `path`, None when it is absent or not what was written."""
    about, data = path.with_suffix(".json"), path.with_suffix(".safetensors")
    try:
        known = json.loads(about.read_text(encoding="utf-8"))
        if known["sha256"] != file_digest(data):
            return None
        return load_file(data), known["extra"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _replace(path: Path, write: Callable[[str], object]) -> None:
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    try:
        write(scratch)
        os.replace(scratch, path)
    finally:
        Path(scratch).unlink(missing_ok=True)
