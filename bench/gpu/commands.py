"""The commands behind `python -m bench.gpu`: each takes the parsed arguments and returns the exit code."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from bench.errors import UsageError
from bench.gpu.checks import (
    compile_command,
    first_call_command,
    folder_of,
    routes_command,
    said,
    tests_command,
    tuning_command,
)
from bench.gpu.kernels import estimate_s, kernel_plan, listing, run_kernels
from bench.gpu.machine import RIVALS, clocks, device_record, installed
from bench.gpu.stages import Outcome, Stage, plan_seconds, run_stages, table
from bench.gpu.sweep import Budget
from bench.gpu.training import LLAMA_8B, TINY, run_training

__all__ = ["COMMANDS", "stages_of"]

TOTAL_S = 450.0
NEEDED = ("numpy", "transformers", "triton")
OPTIONAL = (
    "pytest",
    "pytest-timeout",
    "pytest-benchmark",
    "hypothesis",
    "scipy",
    "pandas",
    "tabulate",
    "seaborn",
    "peft",
)


def all_command(given: argparse.Namespace) -> int:
    """Every stage; a summary at the end and in summary.json."""
    total = given.seconds or TOTAL_S
    if given.dry_run:
        print(dry_run(given, total))
        return 0
    out = folder_of(given)
    if out is None:
        raise UsageError("`all` writes records: on a CPU choose a folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    stages = stages_of(given, out)
    environment = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment["QUANTBENCH_CONFIGURATIONS"] = str((out / "configurations").resolve())
    outcomes = run_stages(stages, total, out / "log.txt", environment)
    print(f"\nrecords: {out}\n{table(outcomes)}")
    summary = {"budget_s": total, "stages": [o.as_dict() for o in outcomes], "provenance": device_record(given.device)}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return verdict(outcomes)


def verdict(outcomes: list[Outcome]) -> int:
    """0 when every stage is ok."""
    return 0 if all(o.status == "ok" for o in outcomes) else 1


def stages_of(given: argparse.Namespace, out: Path) -> list[Stage]:
    """The stages asked for, in order. Raises UsageError for a name that is none."""
    me = (sys.executable, "-m", "bench.gpu")
    common = ("--device", given.device, "--out", str(out), "--seconds", "{seconds}")
    quick = ("--quick",) if given.quick else ()
    since = datetime.now(UTC).isoformat(timespec="seconds")
    without = tuple(part for name in given.without for part in ("--without", name))
    kernels = (*me, "kernels", *common, *quick, *without, "--since", since)
    stages = [
        Stage("doctor", (*me, "doctor", "--device", given.device), 20, what="what is here"),
        Stage("tests", (*me, "tests", *common), 120, what="the GPU tests, or each kernel against its reference"),
        Stage("tuning", (*me, "tuning", *common), 95, what="configurations of the kernels"),
        Stage("routes", (*me, "routes", *common), 30, what="from how many rows on to decode first"),
        Stage("training", (*me, "training", *common), 55, what="LoRA and QLoRA steps at Llama-3-8B's layer sizes"),
        Stage("kernels", kernels, 95, elastic=True, what="kernels against cuBLAS and the rivals"),
        Stage("report", (*me, "report", str(out)), 30, what="tables and plots"),
    ]
    names = {s.name for s in stages}
    for word in (only := words(given.only)) | (skip := words(given.skip)):
        if word not in names:
            raise UsageError(f"unknown stage {word!r}. Known: {', '.join(s.name for s in stages)}")
    return [s for s in stages if s.name not in skip and (not only or s.name in only)]


def words(text: str) -> set[str]:
    """The names in a list by comma."""
    return {word.strip() for word in text.split(",") if word.strip()}


def dry_run(given: argparse.Namespace, total: float) -> str:
    """Stages with their seconds, and the cells of the kernel stage."""
    stages = stages_of(given, given.out or Path("OUT"))
    plan = kernel_plan(given.quick, tiny=given.device == "cpu")
    lines = [f"budget {total:.0f} s; nothing is run"]
    for i, stage in enumerate(stages):
        spent = sum(s.seconds for s in stages[:i])
        lines.append(f"{stage.name:<9} at most {plan_seconds(stages, total, spent, i):4.0f} s  {stage.what}")
        lines.append(f"          {' '.join(stage.command)}")
    if any(s.name == "kernels" for s in stages):
        lines += ["", listing(plan, given.device)]
        room = next(
            plan_seconds(stages, total, sum(s.seconds for s in stages[:i]), i)
            for i, s in enumerate(stages)
            if s.name == "kernels"
        )
        if estimate_s(plan, given.device) > room:
            lines.append(f"more than the {room:.0f} s of its stage: the blocks above run in their order until they end")
    return "\n".join(lines)


def kernels_command(given: argparse.Namespace) -> int:
    """The kernel benchmark."""
    plan = kernel_plan(given.quick, tiny=given.device == "cpu")
    if given.dry_run:
        print(listing(plan, given.device))
        return 0
    said(given.device)
    budget = Budget(given.seconds or float("inf"))
    return run_kernels(plan, given.device, folder_of(given), budget, again=given.without, since=given.since)


def training_command(given: argparse.Namespace) -> int:
    """The training steps."""
    said(given.device)
    sizes = TINY if given.device == "cpu" else LLAMA_8B
    if given.dry_run:
        print("\n".join(str(size) for size in sizes))
        return 0
    return run_training(sizes, given.device, folder_of(given), Budget(given.seconds or float("inf")))


def doctor_command(given: argparse.Namespace) -> int:
    """What is here; 1 when something is missing without which nothing runs."""
    have: Mapping[str, str | None] = installed("torch", *NEEDED, *OPTIONAL, *RIVALS)
    print("  ".join(f"{name} {version}" for name, version in have.items() if version))
    missing = [name for name in NEEDED if have[name] is None]
    for name in missing:
        print(f"missing: {name}: nothing runs without it")
    for name in (*OPTIONAL, *RIVALS):
        if have[name] is None:
            print(f"absent: {name}")
    about = device_record(given.device)
    print(json.dumps({"device": about["device_name"], "gpu": about.get("gpu"), "clocks": clocks()}))
    return 1 if missing else 0


def report_command(given: argparse.Namespace) -> int:
    """Tables and plots; records stay good where they cannot be made."""
    folder = given.folder or given.out
    if folder is None:
        raise UsageError("name the folder of the records: python -m bench.gpu report DIR")
    lacking = [n for n in ("pandas", "tabulate", "rich", "jinja2") if importlib.util.find_spec(n) is None]
    if lacking:
        print(f"no tables here: {', '.join(lacking)} not installed. The records are good: report {folder} elsewhere")
        return 0
    from bench.reports.kernels import write

    for path in write(folder):
        print(path)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "all": all_command,
    "kernels": kernels_command,
    "training": training_command,
    "tests": tests_command,
    "compile": compile_command,
    "tuning": tuning_command,
    "routes": routes_command,
    "first-call": first_call_command,
    "doctor": doctor_command,
    "report": report_command,
}
