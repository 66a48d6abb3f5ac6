"""Which configuration a kernel runs in: a table by device, kernel, dtype and class of shape.

Two tables are read, files of JSON named after the device: the one in the user's cache folder, which tuning writes, and
the one that comes with the package. An entry holds the configuration and the hash of the source it was timed with; it
counts only while that is the source now, comments and layout apart. Without an entry the kernel's first configuration
is taken, and nothing is timed. Sizes of one class share an entry: each of n and k is rounded up to a power of two.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import triton
from torch import Tensor

__all__ = ["chosen", "forget", "remember", "search", "shape_class", "source_hash", "user_folder"]

FOLDER = "QUANTBENCH_CONFIGURATIONS"  # a variable of the environment
SHIPPED = Path(__file__).parent / "configurations"
ROUNDED = ("n", "k")  # arguments that are rounded up; the others of a key are taken as they are


def shape_class(arguments: Mapping[str, Any], key: tuple[str, ...]) -> str:
    """The arguments that a configuration depends on, as in `bfloat16-n8192-k8192-BITS4-GROUP64`.

    >>> shape_class({"n": 5000, "k": 8192, "BITS": 4}, ("n", "k", "BITS"))
    'n8192-k8192-BITS4'
    """
    x = arguments.get("x_ptr", arguments.get("out_ptr"))
    parts = [str(x.dtype).removeprefix("torch.")] if isinstance(x, Tensor) else []
    for name in key:
        value = arguments[name]
        parts.append(f"{name}{1 << (value - 1).bit_length() if name in ROUNDED else value}")
    return "-".join(parts)


def chosen(kernel: Any, arguments: Mapping[str, Any], device: str) -> triton.Config:
    """The configuration of `kernel` for these arguments on the GPU called `device`."""
    folders = os.environ.get(FOLDER), os.environ.get("XDG_CACHE_HOME")
    config: triton.Config = _choice(kernel, shape_class(arguments, kernel.key), device, folders)
    return config


@cache
def _choice(kernel: Any, shape: str, device: str, folders: tuple[str | None, ...]) -> triton.Config:
    place = f"{kernel.fn.__name__}-{shape}"
    for folder in (user_folder(), SHIPPED):
        entry = _table(folder / file_name(device)).get(place)
        if entry and entry["source"] == source_hash(kernel.fn.__module__):
            for config in kernel.configs:
                if as_values(config) == entry["config"]:
                    return config  # type: ignore[no-any-return]
    return kernel.configs[0]  # type: ignore[no-any-return]


def forget() -> None:
    """Read the tables afresh from now on."""
    _table.cache_clear()
    _choice.cache_clear()


def search(
    kernel: Any, arguments: Mapping[str, Any], device: str, seconds: Callable[[triton.Config], float]
) -> triton.Config:
    """The fastest of the kernel's configurations by `seconds`, remembered for this class of shape.

    The first is kept unless another takes less than 0.97 of its time, so that noise does not choose.
    """
    if len(kernel.configs) == 1:
        return kernel.configs[0]  # type: ignore[no-any-return]
    times = [seconds(config) for config in kernel.configs]
    fastest = min(range(len(times)), key=times.__getitem__)
    best: triton.Config = kernel.configs[fastest if times[fastest] < 0.97 * times[0] else 0]
    remember(kernel, arguments, device, best)
    return best


def remember(kernel: Any, arguments: Mapping[str, Any], device: str, config: triton.Config) -> None:
    """Write the configuration to the user's table, whole or not at all."""
    file = user_folder() / file_name(device)
    place = f"{kernel.fn.__name__}-{shape_class(arguments, kernel.key)}"
    entry = {"config": as_values(config), "source": source_hash(kernel.fn.__module__)}
    file.parent.mkdir(parents=True, exist_ok=True)
    forget()
    table = {**_table(file), place: entry}
    written = file.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    written.replace(file)
    forget()


def as_values(config: triton.Config) -> dict[str, Any]:
    """A configuration as JSON values."""
    return {**config.kwargs, "num_warps": config.num_warps, "num_stages": config.num_stages}


def user_folder() -> Path:
    """Where this user's tables are: `quantbench/configurations` in the cache folder, or `QUANTBENCH_CONFIGURATIONS`."""
    named = os.environ.get(FOLDER)
    if named:
        return Path(named)
    cache_home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache_home) / "quantbench" / "configurations"


def file_name(device: str) -> str:
    """The table of a device.

    >>> file_name("NVIDIA H200")
    'nvidia-h200.json'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


@cache
def source_hash(module: str) -> str:
    """Hash of the code of kernel module `module` and of the modules of this package that it imports from.

    It is the same where the package is loaded below another one, as when two versions are compared.
    """
    above, _, own = __name__.rpartition(".")[0].rpartition(".")
    seen: dict[str, str] = {}
    waiting = [module.removeprefix(f"{above}.")]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        tree = ast.parse(Path(str(sys.modules[f"{above}.{name}".lstrip(".")].__file__)).read_text())
        seen[name] = ast.dump(tree)
        imported = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
        waiting += [m for m in imported if m.startswith(f"{own}.") and f"{above}.{m}".lstrip(".") in sys.modules]
    text = "".join(f"{name}:{seen[name]}\n" for name in sorted(seen))
    return hashlib.sha256(f"{triton.__version__}\n{text}".encode()).hexdigest()[:16]


@cache
def _table(file: Path) -> Mapping[str, Any]:
    try:
        table = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
