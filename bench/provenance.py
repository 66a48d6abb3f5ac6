"""Where a record comes from: commit, versions, device, threads, command. Facts that cannot be had are null."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = [
    "VERSIONED",
    "command",
    "commit",
    "cpu_model",
    "default_threads",
    "device_name",
    "provenance",
    "utc_now",
    "versions",
]

ROOT = Path(__file__).resolve().parents[1]
VERSIONED = ("torch", "transformers", "peft", "safetensors", "triton", "numpy", "numba")


def versions() -> dict[str, str | None]:
    """The versions of the libraries that decide a figure, without importing them."""
    out: dict[str, str | None] = {}
    for name in VERSIONED:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = None
    return out


@lru_cache(maxsize=1)
def commit() -> tuple[str | None, bool | None]:
    """The commit of the sources, and whether files that git tracks differ from it; (None, None) outside git."""
    try:
        head = _git("rev-parse", "HEAD").strip()
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "quant", "kernels", "bench").strip()
    except (OSError, subprocess.SubprocessError):
        return None, None
    return head, bool(changed)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout


@lru_cache(maxsize=1)
def cpu_model() -> str:
    """The name of the processor, as the kernel gives it, else as the platform does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    except OSError:
        names = []
    return (names[0] if names else "") or platform.processor() or platform.machine()


def utc_now() -> str:
    """This moment to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def default_threads() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: str) -> str:
    """What the figures of `device` ("cpu" or "cuda") belong to: the processor's or the GPU's name."""
    if device == "cpu":
        return cpu_model()
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "none"


def command() -> list[str]:
    """The command line of this run, its first word the name of the program."""
    return ["bench", *sys.argv[1:]]


def provenance(device: str, threads: int) -> dict[str, Any]:
    """The `provenance` group of a record."""
    head, dirty = commit()
    return {
        "commit": head,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), **versions()},
        "device": device,
        "device_name": device_name(device),
        "cpu": cpu_model(),
        "threads": threads,
        "argv": command(),
    }
