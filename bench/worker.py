"""The child process that executes cells, one after another, so that none of them can take the run down.

It says "ready" once its libraries are loaded, then answers every (cell, protocol) or (cell, protocol, device) on its
pipe with an `Outcome`. It leads a process group of its own (Ctrl-C on the terminal reaches only the parent, which then
kills the group), writes what libraries print to a log file, and ends itself when the parent is gone.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

__all__ = ["Outcome", "resolve", "serve"]

Execute = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its status and reason, the record's groups, and the traceback when there is one."""

    status: str
    reason: str | None = None
    groups: Mapping[str, Any] | None = None
    trace: str = ""


def resolve(name: str) -> Execute:
    """The function named "package.module:function"."""
    module, _, function = name.partition(":")
    found: Execute = getattr(importlib.import_module(module), function)
    return found


def serve(pipe: Connection, executor: str, threads: int, log: Path) -> None:
    """Execute what comes through `pipe` until it closes."""
    os.setsid()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for a library that is yet to be loaded
    try:
        execute = resolve(executor)
        _set_threads(threads)
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send("ready")
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        pipe.send(_outcome(execute, asked))


def _set_threads(threads: int) -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.killpg(os.getpgid(0), signal.SIGKILL)


def _outcome(execute: Execute, asked: tuple[Any, ...]) -> Outcome:
    try:
        groups = execute(*asked)
        if path := _not_finite(groups):
            return Outcome("failed", f"{path} is not a finite number")
        return Outcome("ok", None, json.loads(json.dumps(groups, allow_nan=False)))
    except Exception as error:
        status = _status(error)
        return Outcome(status, _reason(error), None, "" if status == "unsupported" else traceback.format_exc())


def _status(error: Exception) -> str:
    """The CPU allocator reports a lack of memory as a plain RuntimeError, so its text has to be read."""
    text = str(error)
    if _is_a(error, "quant.core", "UnsupportedError"):
        return "unsupported"
    if isinstance(error, MemoryError) or _is_a(error, "torch", "OutOfMemoryError"):
        return "oom"
    if isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in text or "out of memory" in text):
        return "oom"
    return "failed"


def _is_a(error: Exception, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(error, kind)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if not _is_a(error, "quant.core", "UnsupportedError"):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text[:500]


def _not_finite(value: object, path: str = "") -> str:
    """The dotted path of the first NaN or infinity in a tree of dicts and lists; empty when there is none."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else path
    if isinstance(value, Mapping):
        inner = ((f"{path}.{k}" if path else str(k), v) for k, v in value.items())
    elif isinstance(value, (list, tuple)):
        inner = ((f"{path}[{i}]", v) for i, v in enumerate(value))
    else:
        return ""
    return next((found for name, v in inner if (found := _not_finite(v, name))), "")
