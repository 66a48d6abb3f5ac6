"""Executors that stand in for the measuring ones: each method is a way of behaving."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.schema import Cell


@dataclass(frozen=True)
class ToyProtocol:
    """The protocol of the toys."""

    pause_s: float = 0.0
    steps: int = 3
    sizes: tuple[int, ...] = (1, 2)


def _meet(folder: Path, cell: Cell) -> None:
    """Returns once two cells are here at the same time."""
    (folder / cell.model).touch()
    for _ in range(500):
        if len(list(folder.iterdir())) > 1:
            return
        time.sleep(0.02)
    raise RuntimeError("no other cell came")


def execute(cell: Cell, protocol: ToyProtocol) -> dict[str, Any]:
    start = time.monotonic()
    time.sleep(protocol.pause_s)
    if cell.method == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if cell.method == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.method == "meet":
        _meet(Path(os.environ["TOY_MEETING"]), cell)
    if cell.method == "hang":
        time.sleep(600)
    if cell.method == "exit":
        raise SystemExit(7)
    if cell.method == "broken":
        raise KeyError("no such layer")
    if cell.method == "nan":
        return {"accuracy": {"loss": {"value": float("nan")}}}
    if cell.method == "memory":
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
    if cell.method == "python-memory":
        raise MemoryError
    if cell.method == "unsupported":
        from quant.core import UnsupportedError

        raise UnsupportedError("4 columns cannot hold a group of 2:8")
    return {
        "accuracy": {"accuracy": {"value": 0.8, "low": 0.78, "high": 0.82, "n": 100}},
        "training": {"steps": protocol.steps, "pid": os.getpid(), "start_s": start, "end_s": time.monotonic()},
    }


def fail(cell: Cell, protocol: ToyProtocol) -> dict[str, Any]:
    """Every cell fails."""
    raise ArithmeticError("the sum overflows")
