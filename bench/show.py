"""`bench show` and `bench explain`: everything about one cell, and why its record is or is not reused."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bench.errors import BenchError, UsageError, suggestion
from bench.experiment import builtin
from bench.key import changed
from bench.records import FILE, Record, cell_of, current, read, torn

__all__ = ["RESULTS", "cells_in", "explain", "find_record", "folders", "load_folder", "past", "reproduce", "show"]

RESULTS = Path("results")


def folders(out: Path | None) -> list[Path]:
    """The results folders to look in: `out`, or all below results/, those of this machine first."""
    if out is not None:
        return [out]
    found = [path.parent for pattern in (f"local/*/{FILE}", f"*/{FILE}") for path in sorted(RESULTS.glob(pattern))]
    if not found:
        raise UsageError(f"no results under {RESULTS}/ yet: run `bench run quick`, or name a folder with --out")
    return found


def load_folder(folder: Path) -> list[Record]:
    """One record a cell of a results folder; UsageError when there is none. Tells stderr which lines cannot be read."""
    records, n_bad = _readable(folder)
    if not records:
        lines = f" ({n_bad} lines of it cannot be read)" if n_bad else ""
        raise UsageError(f"no records in {folder / FILE}{lines}")
    return records


def _readable(folder: Path) -> tuple[list[Record], int]:
    """One record a cell, and how many lines are none. The file stays as it is: only the run that owns it mends it."""
    path = folder / FILE
    records, bad = read(path)
    last = torn(path)
    for line in [*bad, *([last] if last else [])]:
        advice = f"Not counted; the next run with --out {folder} mends the file and runs its cell again"
        print(f"warning: {path}:{line.number}: {line.why}. {advice}", file=sys.stderr)
    return current(records), len(bad) + bool(last)


def past(out: Path) -> list[Record]:
    """All records of `out` and of every folder below results/, for estimates: a file that cannot be read gives none."""
    files = {path.resolve(): path for path in (out / FILE, *sorted(RESULTS.rglob(FILE)))}
    records: list[Record] = []
    for path in files.values():
        with suppress(UsageError):
            records += read(path)[0]
    return records


def cells_in(where: Sequence[Path]) -> dict[str, tuple[Record, Path]]:
    """Every cell on record in the folders `where` by name, from the first that has it; UsageError when none is."""
    known: dict[str, tuple[Record, Path]] = {}
    for folder in where:
        for record in load_folder(folder) if len(where) == 1 else _readable(folder)[0]:
            known.setdefault(str(cell_of(record)), (record, folder))
    if not known:
        raise UsageError(f"no records in {', '.join(str(folder / FILE) for folder in where)}")
    return known


def find_record(name: str, known: Mapping[str, tuple[Record, Path]]) -> tuple[Record, Path]:
    """The record of the cell `name`, or of the only one that matches it as a pattern, and its folder."""
    if name in known:
        return known[name]
    hits = [cell for cell in known if fnmatchcase(cell, name)]
    if len(hits) == 1:
        return known[hits[0]]
    if hits:
        raise UsageError(f"{name!r} matches {len(hits)} cells: {', '.join(hits[:4])}{', ...' if len(hits) > 4 else ''}")
    hint = suggestion(name, known) or f" A cell is MODEL/TASK/ORDER/METHOD/SEED, such as {next(iter(known))}"
    raise UsageError(f"unknown cell {name!r}.{hint}")


def reproduce(record: Record) -> str:
    """The command that runs exactly this cell again, into a folder of its own: published results stay as they are."""
    cell = cell_of(record)
    origin = record.get("provenance") or {}
    suite = str(record.get("suite", "default"))
    named = [word for word in origin.get("argv", []) if word.endswith(".toml")]
    words = ["bench", "run", suite if suite in builtin() or not named else named[0]]
    if cell.model.startswith(("path:", "hf:")):
        words += ["--model", cell.model]
    words += ["--models", cell.model, "--tasks", cell.task, "--orders", cell.order, "--methods", cell.method]
    words += ["--seeds", str(cell.seed), "--device", str(origin.get("device", "cpu"))]
    again = RESULTS / "local" / "reproduced" / record["key"]
    words += ["--threads", str(origin.get("threads", 1)), "--out", str(again), "--force"]
    return shlex.join(words)


def show(record: Record, folder: Path) -> str:
    """The record in full, its traceback when there is one, and the command that reproduces it."""
    lines = [f"cell      {cell_of(record)}", f"folder    {folder}", f"status    {record['status']}"]
    if record.get("reason"):
        lines.append(f"reason    {record['reason']}")
    body = {k: v for k, v in record.items() if k not in ("cell", "status", "reason", "weights")}
    weights = record.get("weights")
    if weights:
        body["weights"] = {k: v for k, v in weights.items() if k not in ("layers", "histogram")}
    lines.append(json.dumps(body, indent=2, ensure_ascii=False))
    trace = folder / "logs" / f"{record['key']}.txt"
    if record["status"] != "ok" and trace.is_file():
        lines += ["", trace.read_text(encoding="utf-8", errors="replace").rstrip()]
    lines += ["", f"reproduce: {reproduce(record)}"]
    return "\n".join(lines)


def explain(record: Record, parts: dict[str, Any]) -> str:
    """Which parts of the key changed since `record` was made; `parts` are those of now."""
    before = record.get("key_parts")
    if not isinstance(before, dict):
        raise BenchError(f"the record of {cell_of(record)} does not say what its key is made of")
    moved = changed(before, parts)
    if not moved:
        return f"{cell_of(record)}: nothing changed, the record ({record['status']}) is up to date"
    lines = [f"{cell_of(record)}: will run again, {len(moved)} parts of its key changed"]
    return "\n".join([*lines, *(f"  {name}: {a!r} -> {b!r}" for name, a, b in moved)])
