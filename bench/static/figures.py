"""The figures of one compiled kernel that the gate keeps, and the compilation of many in parallel processes."""

from __future__ import annotations

import fnmatch
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor

from bench.static.cases import Case, cases
from kernels.aot import Compiled, compile_launch
from kernels.op import operations
from kernels.tuning import Launch

__all__ = ["Figures", "Table", "figures", "large", "measure", "selected"]

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
    """Figures of every case that `only` selects, for `targets`; 0 workers: in this process.

    A case that cannot be compiled raises what Triton raised, with its name and the target in a note.
    """
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
    chosen = [case for case in cases(operations()[name]) if selected(case.name, only)]
    return {case.name: {t: _compiled(case, t) for t in targets if t in case.targets} for case in chosen}


def _compiled(case: Case, target: str) -> Figures:
    try:
        return figures(case, compile_launch(case.launch, target, case.config))
    except Exception as error:
        error.add_note(f"while compiling {case.name} for {target}")
        raise


def _alone() -> None:
    torch.set_num_threads(1)
