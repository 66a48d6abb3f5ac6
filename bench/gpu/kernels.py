"""The kernel benchmark as a run of its own: which blocks and subjects, in what order, for how long, and the summary.

Blocks that targets are set at come first, so that a short budget still tells whether they are met. An estimate of the
time is a guess from the number of compilations and rounds, and is labelled so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu.ceilings import measure_ceilings
from bench.gpu.layers import layer_subjects
from bench.gpu.machine import clocks, device_record, sparing
from bench.gpu.ops import op_subjects
from bench.gpu.rivals import rival_subjects
from bench.gpu.shapes import SHAPES, TINY_ROWS, TINY_SHAPES, Block, blocks
from bench.gpu.stages import LOST
from bench.gpu.store import KERNELS, Sink, read_lines
from bench.gpu.subjects import Baseline, Subject
from bench.gpu.sweep import Budget, DeviceLostError, Sweep, refuse_interpreter
from bench.gpu.timing import watch_for

__all__ = ["Plan", "estimate_s", "kernel_plan", "listing", "run_kernels", "sweep_for"]

CLOCKS_S = 10.0
BAD = ("failed", "wrong", "oom")
TINY_COPY, TINY_SIDE = 1 << 20, 64
FIRST_S, LATER_S = 4.0, 0.4  # a guess of what a subject takes the first time (it compiles) and in a later block


@dataclass(frozen=True)
class Plan:
    """What a run times, in order."""

    blocks: tuple[Block, ...]
    subjects: tuple[Subject, ...]
    quick: bool
    tiny: bool

    def wanted(self, block: Block, subject: Subject) -> bool:
        """Whether to time it: at the first shape everything, elsewhere the layers, and what they compete with."""
        alone = subject.level == "op" or (subject.level == "layer" and not block.m)
        return not alone or block.shape == self.blocks[0].shape


def kernel_plan(quick: bool = False, tiny: bool = False) -> Plan:
    """The blocks of a quick run first, then, unless `quick`, all the others; `tiny` sizes prove the paths only."""
    subjects = (Baseline(), *layer_subjects(), *op_subjects(), *rival_subjects())
    if tiny:
        return Plan(tuple(blocks(TINY_SHAPES, TINY_ROWS)), subjects, quick, tiny)
    first = blocks(quick=True)
    rest = [] if quick else [b for b in blocks(SHAPES) if b not in first]
    return Plan((*first, *rest), subjects, quick, tiny)


def estimate_s(plan: Plan, device: str) -> float:
    """A guess of the seconds that all of it takes."""
    able = [s for s in plan.subjects if not s.lacks(device)]
    later = sum(LATER_S for b in plan.blocks for s in able if s.takes(b) and plan.wanted(b, s))
    return FIRST_S * len(able) + later


def listing(plan: Plan, device: str) -> str:
    """The plan as text: every block with its competitors, what cannot run here, and the estimate."""
    lines = []
    for block in plan.blocks:
        names = [s.name for s in plan.subjects if s.takes(block) and plan.wanted(block, s) and not s.lacks(device)]
        lines.append(f"{block} ({block.shape.layer}): {', '.join(names)}")
    lines += [f"skipped: {s.name}: {reason}" for s in plan.subjects if (reason := s.lacks(device))]
    cells = sum(s.takes(b) and plan.wanted(b, s) and not s.lacks(device) for b in plan.blocks for s in plan.subjects)
    guess = estimate_s(plan, device)
    lines.append(
        f"{len(plan.blocks)} blocks, {cells} cells; estimated (not measured): {guess:.0f} s on a {device} device"
    )
    return "\n".join(lines)


def sweep_for(plan: Plan, device: str, sink: Sink, budget: Budget) -> Sweep:
    """The sweep of a plan, its ceilings measured."""
    refuse_interpreter()
    watch = watch_for(device)
    ceilings = measure_ceilings(watch, TINY_COPY, TINY_SIDE) if plan.tiny else measure_ceilings(watch)
    about = device_record(device)
    read = sparing(clocks, CLOCKS_S) if device == "cuda" else lambda: {"reason": "clocks are read of a GPU only"}
    return Sweep(plan.subjects, watch, ceilings, sink, budget, about, read, plan.wanted)


def run_kernels(
    plan: Plan, device: str, out: Path | None, budget: Budget, *, again: Sequence[str] = (), since: str = ""
) -> int:
    """Run the plan and print a line a block; exit code 0, 1 when something failed or was wrong, `LOST` for the device.

    After a lost device call it again with the names of the subjects that did it in `again` and the moment the run
    began in `since`: they are left out, and what has been timed since is not timed again.
    """
    sink = Sink(out, KERNELS, device, lambda record: print(told(record), flush=True))
    done = frozenset(
        str(r.get("key"))
        for r in (read_lines(sink.path)[0] if sink.path and since else [])
        if r.get("kind") == "kernel" and str(r.get("started_utc")) >= since and r.get("status") != "skipped"
    )
    kept = Plan(plan.blocks, tuple(s for s in plan.subjects if s.name not in again), plan.quick, plan.tiny)
    sweep = sweep_for(kept, device, sink, budget)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    copy, product = sweep.ceilings.bandwidth / 1e9, sweep.ceilings.product / 1e12
    print(f"measured: copy {copy:.0f} GB/s, product {product:.4g} TFLOP/s")
    code = 0
    try:
        sweep.run(kept.blocks, done)
    except DeviceLostError as error:
        print(f"the device was lost: {error}")
        code = LOST
    sink(summary(sweep, sink, started))
    return code or (1 if any(r.get("status") in BAD for r in sink.written) else 0)


def summary(sweep: Sweep, sink: Sink, started: str) -> dict[str, Any]:
    """The record of the run as a whole."""
    timed = [r for r in sink.written if r["kind"] == "kernel" and r["status"] == "ok"]
    return {
        "kind": "run",
        "key": f"{sweep.about['device_name']} / run / {started}",
        "status": "ok",
        "reason": "",
        "device": sweep.watch.device,
        "started_utc": started,
        "cells": len(timed),
        "failed": sum(r.get("status") in BAD for r in sink.written),
        "out_of_time": sweep.out_of_time,
        "ceilings": sweep.ceilings.as_dict(),
        "provenance": sweep.about,
    }


def told(record: dict[str, Any]) -> str:
    """A record as a line for the log."""
    if record["kind"] == "run":
        late = f"; out of time: {', '.join(record['out_of_time'])}" if record["out_of_time"] else ""
        return f"{record['cells']} cells timed, failed {record['failed']}{late}"
    if record["kind"] == "skipped":
        return f"skipped  {record['subject']}: {record['reason']}"
    where = f"{record['operation']} {record['n']}x{record['k']}" + (f" m={record['m']}" if record["m"] else "")
    if record["status"] != "ok":
        return f"{record['status']:<8} {where} {record['subject']}: {record['reason']}"
    ratio = record["speedup"]["value"]
    beside = "" if ratio is None else f", {ratio:.2f} x the baseline"
    share = record.get("bandwidth_share", 0.0)
    return (
        f"ok       {where} {record['subject']}: {record['time_s']['value'] * 1e6:.1f} us, {share:.0%} of copy{beside}"
    )
