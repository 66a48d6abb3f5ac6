"""The figures of one compiled kernel that the gate keeps, and the compilation of many in parallel processes.

The figures of an operation are kept beside Triton's cache until a kernel, this package, or a version changes.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kernels
from bench.static.cases import Case, cases
from kernels.aot import VERSION, Compiled, cache_folder, compile_launches
from kernels.op import operations
from kernels.tuning import Launch

__all__ = ["Figures", "Table", "figures", "large", "measure", "selected", "source_key"]

Figures = Mapping[str, Any]
Table = dict[str, dict[str, Figures]]  # case -> target -> figures


def figures(case: Case, built: Compiled) -> Figures:
    """Plain numbers of a compiled kernel; `per_value` are the instructions of all threads for one weight value."""
    return {
        "settings": case.settings,
        "registers": built.registers,
        "spills": built.spills,
        "shared": built.shared,
        "size": built.size,
        "per_value": float(f"{built.thread_instructions / case.values:.5g}"),
        "matrix": built.tensor_core,
        "widths": dict(built.widths),
        "large": large(case.launch),
        "inexact_divisions": built.inexact_divisions,
        "fused": built.fused,
        "loops_known": built.loops_known,
    }


def large(launch: Launch) -> list[str]:
    """The tensors that hold an eighth or more of a launch's bytes."""
    sizes = {name: value.nbytes for name, value in launch.arguments.items() if isinstance(value, Tensor)}
    return sorted(name for name, size in sizes.items() if 8 * size >= sum(sizes.values()))


def measure(only: str, targets: Sequence[str], workers: int) -> Table:
    """Figures of every case that `only` selects, for `targets`; 0 workers: in this process."""
    names = [name for name in operations() if fnmatch.fnmatchcase(name, only.split("/")[0])]
    parts = [targets] if not workers else [part for part in (targets[::2], targets[1::2]) if part]
    jobs = [(name, only, part) for part in parts for name in names]
    found: Table = {}
    for table in _mapped(jobs, workers):
        for case, by_target in table.items():
            found.setdefault(case, {}).update(by_target)
    return found


def selected(case: str, only: str) -> bool:
    """Whether a pattern selects this case: by its operation, or by its whole name when there is a slash in it."""
    return fnmatch.fnmatchcase(case if "/" in only else case.split("/")[0], only)


def _mapped(jobs: Sequence[tuple[str, str, Sequence[str]]], workers: int) -> Iterator[Table]:
    if not workers:
        yield from (_of_operation(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_alone) as pool:
        yield from pool.map(_of_operation, *zip(*jobs, strict=True))


def _of_operation(name: str, only: str, targets: Sequence[str]) -> Table:
    folders = (Path(kernels.__path__[0]), Path(__file__).parent)
    file = cache_folder() / "figures" / f"{source_key(folders, VERSION, torch.__version__, name, only, *targets)}.json"
    if file.exists():
        known: Table = json.loads(file.read_text())
        return known
    chosen = [case for case in cases(operations()[name]) if selected(case.name, only)]
    found: Table = {case.name: {} for case in chosen}
    for target in targets:
        seen = [case for case in chosen if target in case.targets]
        for case, built in zip(seen, compile_launches([(c.launch, c.config) for c in seen], target), strict=True):
            found[case.name][target] = figures(case, built)
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps(found))
    written.replace(file)
    return found


def source_key(folders: Iterable[Path], *parts: str) -> str:
    """A hash of the Python files in `folders` and of `parts`: equal keys, equal figures."""
    hashed = hashlib.sha256(json.dumps(parts).encode())
    for file in (file for folder in folders for file in sorted(folder.glob("*.py"))):
        hashed.update(f"\n{file.name}\n".encode() + file.read_bytes())
    return hashed.hexdigest()[:32]


def _alone() -> None:
    torch.set_num_threads(1)
