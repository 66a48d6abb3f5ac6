"""Records of a GPU: one JSON line each, append-only, in `kernels.jsonl`, `training.jsonl` and `stages.jsonl`.

    kind              "kernel", "skipped" (a subject that cannot run here), "run" (one a sweep), "training", and of the
                      other stages "tests", "tuned" (one a kernel and class of shape), "route", "bounds", "first_call"
    key               which figure it is: device, block, level and subject; of several the last ok one counts
    status, reason    ok, failed, wrong (it does not compute its product: not timed), oom, skipped
    operation, n, k, m, layer, dtype    the block
    subject, level, method, implementation      who; the format; the path that ran
    graph_s, eager_s, dispatch_s        stats in seconds (see `bench.gpu.timing`); time_s is graph_s where there is one
    speedup, speedup_eager              baseline's time / this one's in the same rounds, stats: above 1 is faster
    moved_bytes, flop                   the least that must be moved and computed; bandwidth_bytes_per_s, flop_per_s and
    bandwidth_share, flop_share         their rates, and as shares of the copy and the product measured in the same run
    copies, flush_bytes, rounds         inputs that were rotated; bytes overwritten before an eager call
    ceilings, clocks, provenance        of the run
Figures of a CPU say so in `device`, and are never written below the project's `results`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.errors import StoppedError, UsageError
from bench.gpu.machine import slug
from bench.records import to_line

__all__ = [
    "KERNELS",
    "SCHEMA",
    "STAGES",
    "STATUSES",
    "TESTS",
    "TRAINING",
    "Sink",
    "counted",
    "read_lines",
    "results_folder",
]

SCHEMA = 1
KERNELS, TRAINING, STAGES = "kernels.jsonl", "training.jsonl", "stages.jsonl"
TESTS = "tests.jsonl"  # no records: what each test of the last run came to, as it came
STATUSES = ("ok", "failed", "wrong", "oom", "skipped")
RESULTS = Path(__file__).resolve().parents[2] / "results"
Record = dict[str, Any]


class Sink:
    """Appends records to `folder`/`name`, each whole and on the disk before it returns; keeps them in `written`.

    Without a folder it only keeps them; `tell` hears of each. Raises UsageError for figures of a CPU below the
    project's `results`.
    """

    def __init__(
        self, folder: Path | None, name: str, device: str, tell: Callable[[Record], None] = lambda record: None
    ) -> None:
        self.path = None if folder is None else folder / name
        self.tell = tell
        self.written: list[Record] = []
        if folder is None:
            return
        if device == "cpu" and folder.resolve().is_relative_to(RESULTS):
            raise UsageError(f"figures of a CPU are not written to {RESULTS.name}/: choose another folder with --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}. Choose another with --out") from None

    def __call__(self, record: Record) -> None:
        line = to_line({"schema": SCHEMA, **record})
        self.written.append(record)
        self.tell(record)
        if self.path is not None:
            self.append(line)

    def append(self, line: bytes) -> None:
        """One line, whole or not at all. Raises StoppedError when the disk does not take it."""
        assert self.path is not None
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                size = os.fstat(handle).st_size
                torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
                whole = b"\n" + line if torn else line  # a line that was cut short must not swallow this one
                if os.write(handle, whole) != len(whole):
                    os.ftruncate(handle, size)
                    raise StoppedError(f"cannot write {self.path}: the disk is full; what is in it is safe")
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise StoppedError(f"cannot write {self.path}: {error.strerror}") from None


def read_lines(path: Path) -> tuple[list[Record], list[str]]:
    """The records of a file, and of each line that is none: where and why. A missing file holds none."""
    records: list[Record] = []
    bad: list[str] = []
    if not path.exists():
        return [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            bad.append(f"{path}:{number}: {type(error).__name__}: {error}")
            continue
        schema = record.get("schema") if isinstance(record, dict) else None
        if not isinstance(schema, int):
            bad.append(f"{path}:{number}: not a record: schema is {schema!r}")
        elif schema > SCHEMA:
            raise UsageError(f"{path}:{number} has schema {schema}, this version reads <= {SCHEMA}: upgrade")
        else:
            records.append(record)
    return records, bad


def counted(records: Iterable[Record]) -> list[Record]:
    """One record a key: the last that is ok, else the last; in the order of first appearance."""
    out: dict[str, Record] = {}
    for record in records:
        key = str(record.get("key"))
        if record.get("status") == "ok" or key not in out or out[key].get("status") != "ok":
            out[key] = record
    return list(out.values())


def results_folder(out: Path | None, slug: str) -> Path:
    """Where a GPU's figures go: `out`, else results/gpu-<device>."""
    return out or RESULTS / f"gpu-{slug}"


def folder_of(given: argparse.Namespace) -> Path | None:
    """Where records go; figures of a CPU go nowhere unless a folder is named."""
    out: Path | None = given.out
    return results_folder(out, slug("cuda")) if given.device == "cuda" else out


def said(device: str) -> None:
    """Say aloud when the figures are a CPU's."""
    if device == "cpu":
        print("a CPU with tiny sizes: this proves the paths and shows nothing of the kernels")
