"""The commands behind `python -m bench.gpu`: each takes the parsed arguments and returns the exit code.

What a command needs it imports itself: a module that is broken or lacks a library costs its own stage and no other.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import torch

from bench.compiler import REMEDY, compiler_problem
from bench.errors import UsageError
from bench.gpu.machine import RIVALS, clocks, device_record, installed
from bench.gpu.stages import Outcome, Stage, plan_seconds, run_stages, table
from bench.gpu.store import folder_of, said

__all__ = ["COMMANDS", "stages_of"]

TOTAL_S = 460.0
NEEDED = ("numpy", "transformers", "triton")
OPTIONAL = (
    "pytest",
    "hypothesis",
    "scipy",
    "pandas",
    "tabulate",
    "seaborn",
    "rich",
    "peft",
)
Command = Callable[[argparse.Namespace], int]


def all_command(given: argparse.Namespace) -> int:
    """Every stage; a summary in summary.json after each, and at the end on the screen."""
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
    head = {"budget_s": total, "provenance": device_record(given.device)}
    said(given.device)

    def after(outcomes: Sequence[Outcome]) -> None:
        summary = head | {"stages": [o.as_dict() for o in outcomes]}
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    before = signal.signal(signal.SIGTERM, _stopped)
    try:
        outcomes = run_stages(stages, total, out / "log.txt", environment, after)
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"\nrecords: {out}\n{table(outcomes)}")
    return verdict(outcomes)


def _stopped(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # the stage that runs is ended on the way out


def verdict(outcomes: Sequence[Outcome]) -> int:
    """0 when every stage is ok."""
    return 0 if all(o.status == "ok" for o in outcomes) else 1


def stages_of(given: argparse.Namespace, out: Path) -> list[Stage]:
    """The stages asked for, in order. Raises UsageError for a name that is none."""
    me = (sys.executable, "-m", "bench.gpu")
    common = ("--device", given.device, "--out", str(out), "--seconds", "{seconds}")
    quick = ("--quick",) if given.quick else ()
    since = ("--since", datetime.now(UTC).isoformat(timespec="seconds"))
    without = tuple(part for name in given.without for part in ("--without", name))
    speeds: tuple[str, ...] = (sys.executable, "-m", "bench.gate", "record", "--device", given.device, "--allow-busy")
    speeds += ("--file", str(out / "speeds.json"), "--seconds", "{seconds}")
    speeds += ("--only", "unpack/4bit/*") if given.device == "cpu" else ()
    stages = [
        Stage("doctor", (*me, "doctor", "--device", given.device), 25, what="what is here, and does a kernel run"),
        Stage("tests", (*me, "tests", *common), 140, what="the GPU tests, or each kernel against its reference"),
        Stage("tuning", (*me, "tuning", *common, *since), 80, what="configurations of the kernels"),
        Stage("routes", (*me, "routes", *common), 25, what="from how many rows on to decode first"),
        Stage("training", (*me, "training", *common), 45, what="LoRA and QLoRA steps at Llama-3-8B's layer sizes"),
        Stage(
            "kernels",
            (*me, "kernels", *common, *quick, *without, *since),
            85,
            elastic=True,
            what="kernels against cuBLAS and the rivals",
        ),
        Stage("speeds", speeds, 40, what="the record that `make bench-check` compares with on this device"),
        Stage("report", (*me, "report", str(out)), 20, what="tables and plots"),
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
    from bench.gpu.kernels import estimate_s, kernel_plan, listing

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
    from bench.gpu.kernels import kernel_plan, listing, run_kernels
    from bench.gpu.sweep import Budget

    plan = kernel_plan(given.quick, tiny=given.device == "cpu")
    if given.dry_run:
        print(listing(plan, given.device))
        return 0
    said(given.device)
    budget = Budget(given.seconds or float("inf"))
    return run_kernels(plan, given.device, folder_of(given), budget, again=given.without, since=given.since)


def training_command(given: argparse.Namespace) -> int:
    """The training steps."""
    from bench.gpu.sweep import Budget
    from bench.gpu.training import LLAMA_8B, TINY, run_training

    said(given.device)
    sizes = TINY if given.device == "cpu" else LLAMA_8B
    if given.dry_run:
        print("\n".join(str(size) for size in sizes))
        return 0
    return run_training(sizes, given.device, folder_of(given), Budget(given.seconds or float("inf")))


def doctor_command(given: argparse.Namespace) -> int:
    """What is here; 1 when something is missing without which nothing runs, or a kernel does not."""
    have: Mapping[str, str | None] = installed("torch", *NEEDED, *OPTIONAL, *RIVALS)
    print("  ".join(f"{name} {version}" for name, version in have.items() if version))
    missing = [f"missing: {name}: nothing runs without it" for name in NEEDED if have[name] is None]
    for name in (*OPTIONAL, *RIVALS):
        if have[name] is None:
            print(f"absent: {name}")
    if given.device == "cuda" and not torch.cuda.is_available():
        print(f"missing: no CUDA device (torch {torch.__version__})")
        return 1
    about = device_record(given.device)
    print(json.dumps({"device": about["device_name"], "gpu": about.get("gpu"), "clocks": clocks()}), flush=True)
    if given.device == "cuda":
        compiler, problem = compiler_problem()
        missing += [f"missing: {problem} -> {REMEDY}"] if problem else []
        wrong = kernel_problem()
        missing += [f"a kernel does not run: {wrong}"] if wrong else []
        print(f"C compiler {compiler or 'none'}; " + ("a kernel runs" if not wrong else "no kernel runs"))
    print("\n".join(missing) or "nothing is missing")
    return 1 if missing else 0


def kernel_problem() -> str:
    """What hinders a Triton kernel from running on the GPU and being right, else nothing."""
    try:
        from kernels.op import operations

        op = operations()["codebook_matmul"]
        arguments = op.sized(16, 256, 256, torch.bfloat16, "cuda").arguments
        return op.disagreement(op.triton(**arguments), arguments) or ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:1000]


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


def _of(module: str, name: str) -> Command:
    def command(given: argparse.Namespace) -> int:
        found: Command = getattr(importlib.import_module(module), name)
        return found(given)

    return command


COMMANDS: dict[str, Command] = {
    "all": all_command,
    "kernels": kernels_command,
    "training": training_command,
    "tests": _of("bench.gpu.checks", "tests_command"),
    "compile": _of("bench.gpu.checks", "compile_command"),
    "tuning": _of("bench.gpu.checks", "tuning_command"),
    "routes": _of("bench.gpu.checks", "routes_command"),
    "first-call": _of("bench.gpu.checks", "first_call_command"),
    "doctor": doctor_command,
    "report": report_command,
}
