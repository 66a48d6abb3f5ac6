"""The working tree against a committed record of the same device, as ratios to a plain product of the same run.

A record holds, for each case, the logarithms of (time of the case / time of `F.linear` without quantization), one a
block. Seconds of two sessions cannot be compared; such ratios can, within what a session does to processor and memory
alike. That is more than the scatter within a session, so the margin is wider than between two versions that take turns.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch.nn.functional import linear

from bench.errors import CannotRunError, UsageError
from bench.gate.blocks import Call, Maker, blocks
from bench.gate.cases import Case, Missing, Ready, fresh
from bench.gate.clocks import Stopwatch
from bench.gate.compare import ELSEWHERE, Cases, Row, WrongResultError, sides_of
from bench.gate.trees import Tree
from bench.gate.verdict import Finding, Interval, Rule, change_since, interval, judge

__all__ = ["FILE", "LATE", "NoRecordError", "Series", "checked", "find", "place", "read", "series", "write"]

FILE = "speeds.json"
SCHEMA = 1
BLOCKS = 36
LATE = "the time budget ended before it"
NAMED = ("device", "clock", "torch")  # records that differ in one of these are not compared


class NoRecordError(CannotRunError):
    """Nothing to compare with; the text says how to make it."""


@dataclass(frozen=True)
class Series:
    """Log-ratios of one case to the plain product, one a block, and those of the product to itself."""

    ratios: list[float]
    control: list[float]
    elsewhere: float = 0.0


def series(
    tree: Tree,
    cases: Cases,
    clock: Stopwatch,
    only: Iterable[str] | None = None,
    seed: int = 0,
    spare: Callable[[str, str], None] | None = None,
    seconds: float = math.inf,
) -> Iterator[tuple[str, Series]]:
    """Yields (name, Series) of each case (of `only`) that is begun within `seconds`.

    Raises WrongResultError before the time of a wrong result. With `spare` neither that nor any other failure of a
    case ends it: `spare(name, why)` is told, also of a case that time does not suffice for.
    """
    wanted = None if only is None else set(only)
    end = time.monotonic() + seconds
    with sides_of((tree,), (0,)) as (side,):
        for case in cases(side, side):
            if wanted is not None and case.name not in wanted:
                continue
            try:
                if time.monotonic() >= end:
                    raise CannotRunError(LATE)
                ready = case.build(side)
                if wrong := ready.wrong():
                    raise WrongResultError(f"{case.name}: wrong result in {tree.label}: {wrong}; it was not timed")
                found = _measured(case, ready, clock, seed)
            except (Missing, ImportError):
                continue
            except Exception as error:
                if spare is None:
                    raise
                spare(case.name, (str(error).strip() or type(error).__name__).splitlines()[0][:300])
                continue
            yield case.name, found


def checked(record: Mapping[str, Any], now: Mapping[str, Series], rule: Rule) -> list[Row]:
    """A row for each case of the record and of `now`."""
    rows = []
    for name in dict.fromkeys((*record["cases"], *now)):
        if name not in now:
            rows.append(Row(name, "REMOVED", "it is on record; if that is meant, make a new record"))
        elif name not in record["cases"]:
            rows.append(Row(name, "NEW", "not on record"))
        else:
            rows.append(_row(name, record["cases"][name], now[name], rule))
    return rows


def write(path: Path, about: Mapping[str, Any], found: Mapping[str, Series]) -> None:
    """The record of `found`, whole or not at all; `about` says what it was measured on."""
    cases = {n: {"log_ratios": _short(s.ratios), "control": _short(s.control)} for n, s in found.items()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(case, allow_nan=False)}" for name, case in cases.items())
    head = json.dumps({"schema": SCHEMA, **about}, indent=1)[:-2]
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.{os.getpid()}")
    written.write_text(f'{head},\n "cases": {{\n{lines}\n }}\n}}\n', encoding="utf-8")
    written.replace(path)


def read(path: Path) -> dict[str, Any]:
    """A record. Raises UsageError for a file that is none, or that a newer version wrote."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema, cases = record["schema"], record["cases"]
        right = all(len(case["log_ratios"]) >= 6 for case in cases.values()) and all(k in record for k in NAMED)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no record of speeds ({type(error).__name__}: {error})") from error
    if not isinstance(schema, int) or schema > SCHEMA or not right:
        raise UsageError(f"{path} has schema {schema}, this version reads {SCHEMA}, with at least six blocks a case")
    return dict(record)


def find(results: Path, about: Mapping[str, Any]) -> Path:
    """The file below `results` whose record was measured on the same device, by the same clock and torch.

    Raises NoRecordError, naming what differs in the records that there are, and how to make one.
    """
    others = []
    for path in sorted(results.glob(f"*/{FILE}")):
        record = read(path)
        differing = [f"{k} {record[k]!r}" for k in NAMED if record[k] != about[k]]
        if not differing:
            return path
        others.append(f"{path} is of {', '.join(differing)}")
    here = ", ".join(f"{k} {about[k]!r}" for k in NAMED)
    listed = f" ({'; '.join(others)})" if others else ""
    raise NoRecordError(f"no record of {here} below {results}{listed}. Make one: python -m bench.gate record")


def place(results: Path, about: Mapping[str, Any], file: Path | None = None) -> Path:
    """Where a new record goes: `file`, else over that of the same device.

    Raises UsageError where one of another device lies.
    """
    if file is None:
        with suppress(NoRecordError):
            return find(results, about)
    path: Path = file or results / about["folder"] / FILE
    if path.exists() and (other := read(path)["device"]) != about["device"]:
        raise UsageError(f"{path} is of {other!r}, this is {about['device']!r}: move it to another folder of {results}")
    return path


def _measured(case: Case, ready: Ready, clock: Stopwatch, seed: int) -> Series:
    rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    plain = _plain(case)
    makers = {"reference": plain, "again": plain, "new": ready.fresh}
    taken = list(itertools.islice(blocks(makers, clock, rng, alike=False), BLOCKS))
    ratios, control = ([b[who] - b["reference"] for b in taken] for who in ("new", "again"))
    return Series(ratios, control, clock.elsewhere())


def _plain(case: Case) -> Maker:
    """`F.linear` of the case's m, n and k: float32 on the CPU, bfloat16 on a GPU."""
    device, dtype, size = ("cuda", torch.bfloat16, 4096) if case.name.startswith("kernel/") else ("cpu", None, 1024)
    x, w = (torch.ones(n, size, dtype=dtype, device=device) for n in (case.m, size))

    def make(rng: Generator) -> Call:
        a, b = fresh(x, rng), fresh(w, rng)
        return torch.inference_mode()(lambda: linear(a, b))

    return make


def _row(name: str, before: Mapping[str, Any], now: Series, rule: Rule) -> Row:
    level = 1 - rule.error
    change = change_since(before["log_ratios"], now.ratios, level, 0)
    control: Interval = interval(now.control, level, 0)
    verdict, reason = judge(change, control, rule.margin)
    if now.elsewhere > ELSEWHERE:
        verdict, reason = "INCONCLUSIVE", f"{now.elsewhere:.0%} of the CPU time was spent in other threads"
    return Row(name, verdict, reason, Finding(verdict, reason, change, control, len(now.ratios)))


def _short(logs: Iterable[float]) -> list[float]:
    return [round(v, 5) for v in logs]
