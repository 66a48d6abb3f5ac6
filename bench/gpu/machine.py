"""What the figures belong to: the device with its clocks and temperature, and which libraries are there.

Clocks are read, never set. What cannot be read is null with a reason.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.provenance import cpu_model, default_threads, provenance

__all__ = ["RIVALS", "clocks", "device_record", "installed", "interpreter_on", "process_age", "slug", "sparing"]

RIVALS = ("bitsandbytes", "torchao", "gemlite")
FIELDS = {
    "clocks.sm": "sm_hz",
    "clocks.mem": "memory_hz",
    "temperature.gpu": "temperature_celsius",
    "power.draw": "power_watt",
    "clocks_event_reasons.active": "throttle_mask",
}


def installed(*names: str) -> dict[str, str | None]:
    """The version of each distribution, None where it is absent."""
    out: dict[str, str | None] = {}
    for name in names:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = None
    return out


def clocks() -> dict[str, Any]:
    """Clocks, temperature, power and the mask of throttle reasons of GPU 0, as `nvidia-smi` tells them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {"reason": "nvidia-smi is not on the path"}
    query = [tool, "--id=0", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        return {"reason": f"nvidia-smi failed: {error}"}
    if done.returncode:
        return {"reason": f"nvidia-smi exited with {done.returncode}: {(done.stderr or done.stdout).strip()[:120]}"}
    return parse_clocks(done.stdout)


def sparing(read: Callable[[], dict[str, Any]], seconds: float) -> Callable[[], dict[str, Any]]:
    """`read`, its answer kept for `seconds`: a process of its own for each block would cost more than the block."""
    kept: list[tuple[float, dict[str, Any]]] = []

    def get() -> dict[str, Any]:
        if not kept or time.monotonic() - kept[0][0] > seconds:
            kept[:] = [(time.monotonic(), read())]
        return kept[0][1]

    return get


def parse_clocks(line: str) -> dict[str, Any]:
    """One line of nvidia-smi's answer, in base units; a field that it does not know is null.

    >>> parse_clocks("1980, 3201, 41, 120.5, 0x0000000000000001")["sm_hz"]
    1980000000
    """
    out: dict[str, Any] = {}
    for name, text in zip(FIELDS.values(), line.strip().split(","), strict=False):
        text = text.strip()
        if name == "throttle_mask":
            out[name] = text if text.startswith("0x") else None
        elif not re.fullmatch(r"-?\d+(\.\d+)?", text):
            out[name] = None
        else:
            out[name] = int(float(text) * 1e6) if name.endswith("_hz") else float(text)
    return out


def device_record(device: str) -> dict[str, Any]:
    """The `provenance` group of a record, with what a GPU says of itself and the versions of the rivals."""
    out = provenance(device, default_threads()) | {"rivals": installed(*RIVALS)}
    if device == "cuda":
        about = torch.cuda.get_device_properties(torch.cuda.current_device())
        out["gpu"] = {
            "name": about.name,
            "capability": f"{about.major}.{about.minor}",
            "multiprocessors": about.multi_processor_count,
            "memory_bytes": about.total_memory,
            "l2_bytes": about.L2_cache_size,
            "cuda": torch.version.cuda,
        }
    return out


def process_age() -> float:
    """Seconds that this process is old, its imports included: budgets count them."""
    try:
        ticks = float(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def interpreter_on() -> bool:
    """Whether Triton's interpreter is asked for; its times mean nothing and are never taken."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def slug(device: str) -> str:
    """The device's name as part of a folder's name: `nvidia-h200`."""
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_model()
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
