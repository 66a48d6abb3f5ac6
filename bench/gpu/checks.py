"""The commands of the stages before the benchmark: tests, configurations, routes. Each leaves its records."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import Any

from bench.errors import UsageError
from bench.gpu.agreement import disagreements
from bench.gpu.first import first_calls
from bench.gpu.items import Maker, plan
from bench.gpu.machine import device_record, installed
from bench.gpu.routing import bounds_of, find_routes
from bench.gpu.stages import LOST
from bench.gpu.store import STAGES, TESTS, Sink, folder_of, read_lines, said
from bench.gpu.suite import Counts, processes, run_suite
from bench.gpu.sweep import Budget
from bench.gpu.timing import lost, watch_for
from bench.gpu.tuning import Tuning, compile_all, compile_share, seconds_of
from kernels.routes import remember
from kernels.tuned import user_folder

__all__ = [
    "compile_command",
    "first_call_command",
    "routes_command",
    "tests_command",
    "tuning_command",
]

COMPILE_S, FIRST_S = 45.0, 12.0
SHOWN = 40


def tests_command(given: argparse.Namespace) -> int:
    """The GPU tests; without pytest each kernel against its reference, values alone. What came of them is a record."""
    seconds = given.seconds or float("inf")
    out = folder_of(given)
    if installed("pytest")["pytest"]:
        how, counts = "pytest -m gpu", run_suite(seconds, notes=out / TESTS if out else None)
    else:
        agreed, late, wrong = disagreements(given.device, Budget(seconds))
        how = "each kernel against its reference; pytest is not installed"
        counts = Counts(agreed, len(wrong), 0, late, tuple(wrong))
    for line in (*counts.failures[:SHOWN], *(f"unreached: {n} of {name}" for name, n in counts.left.items())):
        print(line)
    print(f"{how}: {counts.told()}")
    about = device_record(given.device)
    head = {"kind": "tests", "key": f"{about['device_name']} / tests", "device": given.device, "how": how}
    good = counts.good or (given.device == "cpu" and counts.all_skipped)
    status = {"status": "ok" if good else "failed", "reason": "" if counts.good else counts.told()}
    sink_of(given)(head | status | counts.as_dict() | {"provenance": about})
    return 0 if good else 1


def compile_command(given: argparse.Namespace) -> int:
    """One process's share of what `tuning` compiles."""
    i, n = (int(part) for part in given.shard.split("/"))
    done = compile_share(given.device, i, n, Budget(given.seconds or float("inf")))
    return 0 if done or n > 1 else 1


def tuning_command(given: argparse.Namespace) -> int:
    """The table of configurations, in QUANTBENCH_CONFIGURATIONS or the user's folder; then the first call with it."""
    said(given.device)
    needs_folder(given.device)
    budget, about = Budget(given.seconds or float("inf")), device_record(given.device)
    sink, tiny = sink_of(given), given.device == "cpu"
    done = [str(r["place"]) for r in since(given) if r.get("kind") == "tuned" and r.get("status") == "ok"]
    if not tiny and not done:
        codes = compile_all(given.device, processes(), min(budget.left / 2, COMPILE_S))
        print(f"compiled, exit codes {sorted(set(map(str, codes)))}; {budget.left:.0f} s are left", flush=True)
    kept = Budget(budget.left - (0 if tiny else FIRST_S))
    timed = alike if tiny else seconds_of(watch_for(given.device))
    tuning = Tuning(timed, sink, kept, about, lost)
    if gone := tuning.run(plan(tiny), Maker(given.device, done), given.without):
        print(f"the device was lost: {gone}, while it was tuned", flush=True)
        return LOST
    ok = sum(r["status"] == "ok" for r in sink.written)
    print(f"{ok} entries, {tuning.wrong} failed; in {user_folder().name}/", flush=True)
    return 1 if first_call_apart(given, budget) or tuning.wrong else 0


def since(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The records of stages written since `--since`."""
    folder = folder_of(given)
    if not given.since or folder is None:
        return []
    return [r for r in read_lines(folder / STAGES)[0] if str(r.get("started_utc", "")) >= given.since]


def first_call_apart(given: argparse.Namespace, budget: Budget) -> int:
    """Exit code of `first-call` in a process of its own, for which nothing is compiled yet."""
    command = [sys.executable, "-m", "bench.gpu", "first-call", "--device", given.device]
    command += ["--out", str(given.out)] if given.out else []
    seconds = min(4 * FIRST_S, max(budget.left, 1.0))
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "TRITON_CACHE_DIR": empty}
        try:
            return subprocess.run(command, env=environment, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            print(f"the first call was ended after {seconds:.0f} s")
            return 1


def alike(launch: Any, config: Any) -> float:
    """In place of a time where there is no GPU: the first configuration is kept."""
    return 1.0


def needs_folder(device: str) -> None:
    """Raise UsageError where a rehearsal would write to the tables that real runs read."""
    if device == "cpu" and not os.environ.get("QUANTBENCH_CONFIGURATIONS"):
        raise UsageError("on a CPU nothing is tuned: name a folder for the rehearsal in QUANTBENCH_CONFIGURATIONS")


def first_call_command(given: argparse.Namespace) -> int:
    """The first product of this process."""
    first_calls(given.device, sink_of(given), device_record(given.device))
    return 0


def routes_command(given: argparse.Namespace) -> int:
    """Bounds of the routes, written beside the configurations."""
    said(given.device)
    needs_folder(given.device)
    about, sink, tiny = device_record(given.device), sink_of(given), given.device == "cpu"
    name = about["device_name"]
    budget = Budget(given.seconds or float("inf"))
    found = bounds_of(find_routes(watch_for(given.device), sink, budget, about, tiny))
    if not found:
        print("no bounds: nothing could be timed")
        return 1
    file = remember(name, found)
    head = {"kind": "bounds", "key": f"{name} / bounds", "device": given.device, "status": "ok", "reason": ""}
    sink(head | {"bounds": {size: asdict(b) for size, b in found.items()}, "provenance": about})
    print(f"{file.name}: " + ", ".join(f"{size}: dense from {b.dense} rows on" for size, b in found.items()))
    return 1 if any(r["status"] != "ok" for r in sink.written) else 0


def sink_of(given: argparse.Namespace) -> Sink:
    """Where the records of a stage go."""
    return Sink(folder_of(given), STAGES, given.device, lambda record: print(line_of(record), flush=True))


def line_of(record: dict[str, Any]) -> str:
    """A record of a stage as a line for the log."""
    figures = {"tuned": "config", "route": "product_over_dense", "first_call": "first_call_s", "bounds": "bounds"}
    shown = record.get(figures.get(record["kind"], ""), "")
    value = shown.get("value") if isinstance(shown, dict) and "value" in shown else shown
    return " ".join(str(part) for part in (record["status"], record["key"], value, record["reason"]) if part != "")
