"""The key of a cell: what its figures depend on, by name, and 16 hex digits of it.

A record is reused only under the same key, so a changed setting, source file, model file, library, processor or number
of threads runs the cell again. (Sums of floats differ in their last bits with the number of threads.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.provenance import ROOT, versions
from bench.schema import Cell

__all__ = ["changed", "file_hashes", "key_of", "key_parts", "source_hash", "sources_of"]

METHODS_FOLDERS = ("quant/methods/", "quant/peers/")

# These files of bench/ present, schedule or store figures; they do not measure them.
NOT_MEASURING = (
    "__main__.py",
    "catalog.py",
    "child.py",
    "cli.py",
    "compare.py",
    "doctor.py",
    "errors.py",
    "estimate.py",
    "experiment.py",
    "experiment_file.py",
    "gate",
    "gpu",
    "key.py",
    "interrupts.py",
    "learning_rates.py",
    "plan.py",
    "progress.py",
    "provenance.py",
    "rates",
    "records.py",
    "reports",
    "micro",
    "experiments",
    "run.py",
    "schedule.py",
    "schema.py",
    "select.py",
    "sensitivity",
    "session.py",
    "show.py",
    "static",
    "toml_lines.py",
)


@lru_cache(maxsize=1)
def file_hashes(root: Path = ROOT) -> dict[str, str]:
    """sha256 (12 hex digits) of every source file that may decide a figure, by its path below `root`."""
    out = {}
    for package in ("bench", "kernels", "quant"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).parts
            if parts[0] == "bench" and parts[1] in NOT_MEASURING:
                continue
            out["/".join(parts)] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return out


def sources_of(quantizer: object, files: Mapping[str, str]) -> dict[str, str]:
    """The part of `files` that the figures of a method depend on: all but the files of other methods.

    A method's own files are those of its class and its nested quantizers' classes, and what these import, so that
    adding a method leaves the records of the others valid. A class from elsewhere is followed to its own file.
    """
    own: set[str] = set()
    outside: dict[str, str] = {}
    for kind in _classes(quantizer):
        path = kind.__module__.replace(".", "/") + ".py"
        if path.startswith(METHODS_FOLDERS):
            own |= _imported(path, files)
        elif not kind.__module__.startswith(("quant.", "builtins", "abc")) and (where := _file_of(kind)):
            outside[where.name] = hashlib.sha256(where.read_bytes()).hexdigest()[:12]
    kept = {p: digest for p, digest in files.items() if not p.startswith(METHODS_FOLDERS) or p in own}
    return kept | outside


def _classes(value: object) -> set[type]:
    """The classes of `value` and of the dataclasses among its fields, in tuples too, with their bases."""
    if isinstance(value, tuple):
        return set().union(*map(_classes, value))
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return set()
    nested = (_classes(getattr(value, field.name)) for field in dataclasses.fields(value))
    return set(type(value).__mro__).union(*nested)


def _file_of(kind: type) -> Path | None:
    try:
        name = inspect.getsourcefile(kind)
    except TypeError:
        return None
    return Path(name) if name and Path(name).is_file() else None


def _imported(path: str, files: Mapping[str, str], root: Path = ROOT) -> set[str]:
    """`path` and the method files that it imports, directly or not."""
    found: set[str] = set()
    todo = [path]
    while todo:
        path = todo.pop()
        if path in found or path not in files:
            continue
        found.add(path)
        text = (root / path).read_text(encoding="utf-8")
        todo += [f"quant/{kind}/{name}.py" for kind, name in re.findall(r"quant\.(methods|peers)\.(\w+)", text)]
    return found


def source_hash(files: Mapping[str, str]) -> str:
    """One hash for the contents of all of `files`."""
    return _digest(dict(files))


def key_parts(
    cell: Cell,
    protocol: Any,
    settings: Mapping[str, Any],
    *,
    source: str,
    model: str,
    data: str,
    threads: int,
    device: str,
) -> dict[str, Any]:
    """What the figures of `cell` depend on; `source`, `model`, `data` are fingerprints, `device` a name."""
    return {
        "cell": cell.as_dict(),
        "protocol": dataclasses.asdict(protocol),
        "settings": dict(settings),
        "source": source,
        "model": model,
        "data": data,
        "versions": versions(),
        "threads": threads,
        "device": device,
    }


def key_of(parts: Mapping[str, Any]) -> str:
    """16 hex digits of the sha256 of the canonical JSON of `parts`."""
    return _digest(parts)


def changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Where two sets of key parts differ: (dotted name, before, now); an absent value is None."""
    out: list[tuple[str, Any, Any]] = []
    for name in [*before, *(n for n in now if n not in before)]:
        a, b = before.get(name), now.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += changed(a, b, f"{prefix}{name}.")
        elif _canonical(a) != _canonical(b):
            out.append((prefix + name, a, b))
    return out


def _digest(value: object) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:16]


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
