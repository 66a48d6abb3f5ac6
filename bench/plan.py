"""What a run has to do: which cells are on record under the same key, which must run, which cannot run here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.child import EXECUTOR
from bench.errors import UsageError
from bench.experiment import Experiment
from bench.key import file_hashes, key_of, key_parts, source_hash, sources_of
from bench.provenance import provenance
from bench.records import Record, latest
from bench.run import Job
from bench.schedule import threads_of
from bench.schema import STATUSES, Cell
from bench.select import matches, split
from bench.worker import resolve

__all__ = ["KEPT", "Fingerprints", "Plan", "make_plan", "missing_device", "retried", "same_place"]

KEPT = ("ok", "unsupported")  # statuses that running again would only repeat


@dataclass(frozen=True)
class Fingerprints:
    """How to find what a cell depends on; tests put in their own."""

    method: Callable[[str], Any]  # name -> the quantizer
    model: Callable[[str], str]
    data: Callable[[str], str]


@dataclass(frozen=True)
class Plan:
    """All `jobs` of an experiment in order; those of them `todo`, and the records that stand for the others."""

    jobs: tuple[Job, ...]
    todo: tuple[Job, ...]
    reused: tuple[Record, ...]


def make_plan(
    cells: Sequence[Cell],
    experiment: Experiment,
    records: Sequence[Record],
    fingerprints: Fingerprints,
    *,
    device: str,
    threads: int,
    force: str | None = None,
    rerun: Sequence[str] = (),
) -> Plan:
    """`force` is a list of patterns of cells to run whatever is on record; `rerun` the statuses to run again.

    `threads` is what the run may use; the key and the provenance of a cell say how many of them it has.
    """
    by_key = latest(records)
    files = file_hashes()
    patterns = split(force) if force else ()
    if patterns and not any(matches(str(cell), patterns) for cell in cells):
        raise UsageError(f"--force {force!r} matched 0 of {len(cells)} cells")
    jobs, todo, reused = [], [], []
    for cell in cells:
        origin = provenance(device, threads_of(cell, threads))
        method = fingerprints.method(cell.method)
        parts = key_parts(
            cell,
            experiment.protocol,
            method.settings(),
            source=source_hash(sources_of(method, files)),
            model=fingerprints.model(cell.model),
            data=fingerprints.data(cell.task),
            threads=origin["threads"],
            device=origin["device_name"],
        )
        head: Record = {
            "suite": experiment.name,
            "quick": experiment.quick,
            "key_parts": parts,
            "provenance": origin,
            "family": method.family,
            "settings": method.settings(),
            "label": cell.method,
        }
        job = Job(cell, key_of(parts), head)
        jobs.append(job)
        known = by_key.get(job.key)
        if known is None or known["status"] in rerun or matches(str(cell), patterns):
            todo.append(job)
        else:
            reused.append(known)
    return Plan(tuple(jobs), tuple(todo), tuple(reused))


def retried(text: str | None) -> tuple[str, ...]:
    """The statuses that `--retry` names; without it all but `KEPT`, and 'none' leaves failures as they are."""
    always = ("skipped", "interrupted")
    if text is None:
        return tuple(status for status in STATUSES if status not in KEPT)
    if text == "none":
        return always
    for status in split(text):
        if status not in STATUSES:
            raise UsageError(f"--retry: unknown status {status!r}. Known: none, {', '.join(STATUSES)}")
    return (*always, *split(text))


def missing_device(device: str) -> str:
    """Why `device` cannot be used here; empty when it can."""
    if device == "cpu":
        return ""
    import torch

    if torch.cuda.is_available():
        takes_device = "device" in inspect.signature(resolve(EXECUTOR)).parameters
        return "" if takes_device else "the cells of this version are measured on the CPU only"
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU"
    return f"needs a CUDA device, none found (torch {torch.__version__.partition('+')[0]} {built})"


def same_place(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether times of two provenances may be compared."""
    return all(a.get(name) == b.get(name) for name in ("device", "device_name", "threads"))
