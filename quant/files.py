"""The one door to model folders: what may lie in one, and what a safetensors file must look like before it is used.

Only safetensors files are read. Formats built on pickle (.bin, .pt, .pth, .pkl, .npy) can run code when they are
read, so a folder that holds one is refused. Paths stay inside the folder. Headers are checked here, before any
library parses them: size, number of tensors, duplicate keys, names, dtypes, shapes, overlaps and holes.
Layout of safetensors: 8 bytes little-endian header length, JSON header, tensors back to back.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["check_model_folder", "inside", "read_header", "read_json", "read_tensors", "sha256", "write_tensors"]

MAX_HEADER = 1 << 20
MAX_TENSORS = 20_000
MAX_JSON = 64 << 20  # tokenizers are the largest JSON files of a model folder
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".npy", ".npz", ".ckpt", ".joblib")
NAME = re.compile(r"[A-Za-z0-9_.]+")
ITEM = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


def inside(folder: Path, name: str) -> Path:
    """The file `name` of `folder`, after checking that it lies in it.

    Links may not lead out of the folder, except into the `blobs` of the same Hugging Face cache entry. Raises
    ValueError for a path that leaves the folder, FileNotFoundError for a file that is not there.
    """
    relative = Path(name)
    if not name or "\0" in name or relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{folder}: file name {name!r} must be relative and stay in the folder")
    path = folder / relative
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; the folder needs it")
    home, real = folder.resolve(), path.resolve()
    cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if not real.is_relative_to(home) and not (cache and real.parent == cache):
        raise ValueError(f"{path} is a link out of the folder, to {real}; copy the file instead")
    if not real.is_file():
        raise ValueError(f"{path} is not a plain file")
    return path


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object from `path`; ValueError names a file with an error, a duplicate key, or over `limit` bytes."""
    size = path.stat().st_size
    if size > limit:
        raise ValueError(f"{path} has {size} bytes, more than the {limit} allowed")
    return _object(path.read_bytes(), str(path))


def _object(text: bytes, where: str) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(items)
        if len(out) != len(items):
            keys = [k for k, _ in items]
            twice = next(k for k in keys if keys.count(k) > 1)
            raise ValueError(f"{where}: key {twice!r} appears twice")
        return out

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=pairs)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(value).__name__}")
    return value


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The tensors of a safetensors file, {name: {"dtype", "shape", "data_offsets"}}, and the bytes before the data.

    Raises ValueError, naming the file and the tensor, for anything but a well-formed file of exactly its length.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or 8 + length > size:
            raise ValueError(f"{path} is truncated: {size} bytes, its header says at least {8 + length}; copy it again")
        if length > MAX_HEADER:
            raise ValueError(f"{path} has a header of {length} bytes, more than the {MAX_HEADER} allowed")
        header = _object(file.read(length), f"{path} (header)")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise ValueError(f"{path} holds {len(header)} tensors, more than the {MAX_TENSORS} allowed")
    spans = sorted(_span(path, name, entry) for name, entry in header.items())
    end, last = 0, "the header"
    for begin, stop, name in spans:
        if begin != end:
            what = "overlaps" if begin < end else "leaves a hole after"
            raise ValueError(f"{path}: tensor {name!r} {what} {last}; the file is damaged")
        end, last = stop, repr(name)
    if 8 + length + end != size:
        what = "is truncated" if 8 + length + end > size else "has bytes after its tensors"
        raise ValueError(f"{path} {what}: {size} bytes, its header says {8 + length + end}; copy it again")
    return header, 8 + length


def _span(path: Path, name: str, entry: Any) -> tuple[int, int, str]:
    """[begin, end) of a tensor, checked against its dtype and shape."""
    check_name(name, str(path))
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{path}: tensor {name!r} needs dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in ITEM:
        raise ValueError(f"{path}: tensor {name!r} has unknown dtype {dtype!r}")
    for field, value in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(value, list) or any(type(v) is not int or v < 0 for v in value):
            raise ValueError(f"{path}: tensor {name!r} has {field} {value!r}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != ITEM[dtype] * math.prod(shape):
        raise ValueError(f"{path}: tensor {name!r}, {dtype} {shape}, does not fill its bytes {offsets}")
    return offsets[0], offsets[1], name


def check_name(name: str, where: str) -> None:
    """Raise ValueError unless `name` is made of letters, digits, dots and underscores."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{where}: tensor name {name!r} must be made of letters, digits, '.' and '_'")


def sha256(data: Path | Tensor) -> str:
    """SHA-256 of a file, or of a tensor's bytes, in hex."""
    if isinstance(data, Path):
        with data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    import torch

    raw = data.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


def read_tensors(folder: Path, name: str, checksum: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file of `folder`, after all checks; `checksum` is the file's expected sha256."""
    path = inside(folder, name)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: only .safetensors files are read")
    read_header(path)
    if checksum is not None and (found := sha256(path)) != checksum:
        raise ValueError(f"{path} was changed after it was saved: sha256 {found}, expected {checksum}; copy it again")
    return load_file(path)


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> Path:
    """Write `tensors` to a safetensors file of `folder`, complete or not at all."""
    for key in tensors:
        check_name(key, name)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.part"
    save_file({key: t.detach().contiguous() for key, t in tensors.items()}, part, {"format": "pt"})
    os.replace(part, folder / name)
    return folder / name


def check_model_folder(path: str | Path) -> Path:
    """Check a local model folder before any library opens it; returns it resolved.

    Raises ValueError (or FileNotFoundError) naming the file and the remedy: not a folder, no safetensors, a pickle,
    a link or an index that leads out of the folder, a damaged header, a config that is not JSON.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the folder that holds config.json")
    files = sorted(p.name for p in folder.iterdir() if not p.is_dir())
    for name in files:
        if Path(name).suffix.lower() in PICKLES:
            raise ValueError(
                f"{folder / name} is (or may be) a pickle, which can run code when it is read; "
                "convert the model to safetensors and remove this file"
            )
        inside(folder, name)
    weights = [name for name in files if name.endswith(".safetensors")]
    if not weights:
        raise ValueError(f"{folder} holds no .safetensors file; save the model with safe_serialization")
    for name in weights:
        read_header(folder / name)
    for name in files:
        if name.endswith(".json"):
            _check_references(folder, read_json(folder / name) if name != "vocab.json" else {})
    if "config.json" not in files and "adapter_config.json" not in files:
        raise FileNotFoundError(f"{folder / 'config.json'} is missing; the folder needs it")
    return folder.resolve()


def _check_references(folder: Path, value: Mapping[str, Any]) -> None:
    """Every file that an index or a configuration names must be a safetensors (or plain) file inside the folder."""
    shards = value.get("weight_map", {})
    if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
        raise ValueError(f"{folder}: weight_map must map tensor names to file names")
    for shard in sorted(set(shards.values())):
        if not shard.endswith(".safetensors"):
            raise ValueError(f"{folder}: weight_map names {shard!r}; only .safetensors files are read")
        inside(folder, shard)
    for key, name in value.items():
        if key.endswith("_file") and isinstance(name, str):
            inside(folder, name)
