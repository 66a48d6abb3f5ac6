"""Whether this machine can run the benchmark: one line a requirement, how to mend what is not right, what will run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
from packaging.version import InvalidVersion, Version

from bench.compiler import REMEDY, compiler_problem
from bench.provenance import cpu_model, default_threads

__all__ = ["RANGES", "Check", "examine", "in_range", "shown", "verdict"]

OK, LIMITED, MISSING = "OK", "limited", "missing"
RANGES = {"torch": ("2.11", "2.14"), "triton": ("3.6", "3.10"), "transformers": ("5", "6"), "peft": ("0.18", "1")}
FREE_MEMORY_BYTES = 3 * 2**30
FREE_DISK_BYTES = 2**30


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, OK / limited / missing, what was found, and how to mend it."""

    name: str
    state: str
    found: str
    fix: str = ""


def in_range(version: str, low: str, high: str) -> bool:
    """low <= version < high, local parts such as +cpu left out."""
    try:
        return Version(low) <= Version(Version(version).public) < Version(high)
    except InvalidVersion:
        return False


def examine(results: Path) -> list[Check]:
    """Every check, in the order in which a reader would mend them; none raises."""
    checks = [_python(), *(_library(name) for name in RANGES), _cpu(), _memory(), _disk(results)]
    cuda = _cuda()
    return [*checks, cuda, _compiler(needed=cuda.state == OK), *_assets(), _cache(), _writable("results", results)]


def verdict(checks: list[Check]) -> str:
    """The last line: what can be run here."""
    states = {check.name: check.state for check in checks}
    if any(states.get(name) == MISSING for name in ("python", "torch", "transformers", "peft", "results")):
        return "You can run: nothing yet. Mend what is missing above, then `bench doctor` again."
    absent = [name.removeprefix("model ") for name, state in states.items() if _is_asset(name) and state == MISSING]
    can = "bench run quick (tiny models, about a minute)"
    if not absent:
        can += ", bench run default (about twenty minutes), bench run full"
    cuda = "On the GPU too: --device cuda." if states.get("cuda") == OK else "Figures on a GPU need a CUDA device."
    if states.get("cuda") == OK and states.get("compiler") == MISSING:
        cuda = "On the GPU nothing before there is a C compiler."
    need = f" The others need {', '.join(absent)}." if absent else ""
    return f"You can run: {can}.{need} {cuda}"


def shown(checks: list[Check], *, as_json: bool) -> str:
    """The report, as text or JSON."""
    if as_json:
        return json.dumps({"checks": [asdict(check) for check in checks], "verdict": verdict(checks)}, indent=2)
    wide = max(len(check.name) for check in checks)
    lines = [f"{check.state:<8} {check.name:<{wide}}  {check.found}" for check in checks]
    for i, check in enumerate(checks):
        if check.fix:
            lines[i] += f"  -> {check.fix}"
    return "\n".join([*lines, "", verdict(checks)])


def _is_asset(name: str) -> bool:
    return name.startswith(("model ", "texts "))


def _python() -> Check:
    version = platform.python_version()
    right = sys.version_info >= (3, 11)
    return Check("python", OK if right else MISSING, version, "" if right else "use Python 3.11 or later")


def _library(name: str) -> Check:
    low, high = RANGES[name]
    worst = LIMITED if name == "triton" else MISSING
    fix = f"install {name}>={low},<{high} (`make setup` does)"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, worst, "not installed", fix)
    if in_range(version, low, high):
        return Check(name, OK, version)
    return Check(name, LIMITED, f"{version}, tested with {low} up to but not {high}", fix)


def _cpu() -> Check:
    """Without these instructions the bf16 and int8 products run, slower."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    has = [flag for flag in wanted if flag in flags]
    fast = {"avx512_vnni", "avx512_bf16"} <= flags
    found = f"{cpu_model()}, {default_threads()} threads, {' '.join(has) or 'no vector extensions known'}"
    return Check(
        "cpu", OK if fast else LIMITED, found, "" if fast else "bf16 and int8 speed will be below what is usual"
    )


def _memory() -> Check:
    free = psutil.virtual_memory().available
    fix = "" if free >= FREE_MEMORY_BYTES else "close other programs: 3 GiB are needed, or cells end as oom"
    return Check("memory", LIMITED if fix else OK, f"{free / 2**30:.1f} GiB free", fix)


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _disk(results: Path) -> Check:
    free = shutil.disk_usage(_existing(results)).free
    fix = "" if free >= FREE_DISK_BYTES else "free 1 GiB for the results and prepared models"
    return Check("disk", LIMITED if fix else OK, f"{free / 2**30:.1f} GiB free", fix)


def _cuda() -> Check:
    fix = "not needed; only --device cuda is"
    try:
        import torch
    except ImportError:
        return Check("cuda", LIMITED, "torch is not installed", fix)
    if not torch.cuda.is_available():
        return Check("cuda", LIMITED, "no CUDA device", fix)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("cuda", OK, ", ".join(names))


def _compiler(*, needed: bool) -> Check:
    """Triton's kernels are launched by code that a C compiler builds; on a machine without a GPU it is not needed."""
    found, problem = compiler_problem()
    if not problem:
        return Check("compiler", OK, f"{found}, with Python.h")
    return Check("compiler", MISSING if needed else LIMITED, problem, REMEDY if needed else "needed on a GPU only")


def _assets() -> list[Check]:
    """Every model that takes no argument and the texts of every task must be found; their bytes are read once."""
    try:
        from bench.models import SOURCES, fingerprint
        from bench.tasks import TASKS
    except ImportError as error:
        return [Check("models and data", MISSING, str(error), "run `make setup`")]
    models = [_asset(f"model {s.name}", partial(fingerprint, s.name)) for s in SOURCES.values() if not s.takes]
    return models + [_asset(f"texts of {task.name}", task.fingerprints) for task in TASKS.values()]


def _asset(name: str, look: Callable[[], object]) -> Check:
    try:
        look()
    except (OSError, ValueError, ImportError) as error:
        return Check(name, MISSING, " ".join(str(error).split())[:160], "run `make setup`")
    return Check(name, OK, "present")


def _cache() -> Check:
    try:
        from bench.models import cache_folder

        return _writable("cache", cache_folder())
    except (ImportError, OSError) as error:
        return Check("cache", MISSING, str(error), "set QUANTBENCH_CACHE to a folder that can be written")


def _writable(name: str, folder: Path) -> Check:
    existing = _existing(folder)
    right = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    fix = "" if right else "choose a folder that can be written, with --out" if name == "results" else "mend its rights"
    return Check(name, OK if right else MISSING, f"{'can' if right else 'cannot'} be written", fix)
