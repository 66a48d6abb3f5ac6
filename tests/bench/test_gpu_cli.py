"""Laws of the command line of the GPU run, and a rehearsal of its stages on the CPU without optional packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import UsageError
from bench.gpu import commands
from bench.gpu.__main__ import main, parser
from bench.gpu.kernels import estimate_s, kernel_plan, listing
from bench.gpu.shapes import SHAPES
from bench.gpu.stages import GRACE_S, Outcome
from bench.gpu.store import KERNELS, STAGES, TRAINING, read_lines
from bench.gpu.training import ARMS
from bench.reports.__main__ import main as reports
from kernels.op import operations

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["doctor", "tests", "tuning", "routes", "training", "kernels", "speeds", "report"]
WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {names} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from bench.gpu.__main__ import main
from bench.gpu import checks

checks.first_call_apart = lambda given, budget: checks.first_call_command(given)
common = ["--device", "cpu", "--out", {out!r}, "--seconds", "200"]
codes = {{name: main([name, *common]) for name in ("doctor", "tuning", "routes", "training", "kernels")}}
codes["report"] = main(["report", {out!r}])
codes["repeated"] = main(["kernels", *common, "--since", "2000-01-01"])
print("CODES", codes)
"""
OPTIONAL = (
    "scipy",
    "numba",
    "psutil",
    "pandas",
    "seaborn",
    "matplotlib",
    "rich",
    "tabulate",
    "pytest",
    "pytest_benchmark",
    "hypothesis",
    "peft",
    "bitsandbytes",
)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("command", ["all", "tests", "tuning", "routes", "training", "kernels"])
def test_without_cuda_it_refuses_in_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 4
    told = capsys.readouterr().err
    assert told.startswith("error: no CUDA device")
    assert told.count("\n") == 1
    assert "make bench-kernels" in told


@pytest.mark.usefixtures("no_gpu")
def test_a_dry_run_lists_stages_and_cells_and_runs_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert main(["--dry-run"]) == 0
    told = capsys.readouterr().out
    for name in NAMES:
        assert f"\n{name} " in told
    for op in operations():
        assert op in told
    assert "estimated (not measured)" in told


def test_all_stages_fit_in_eight_minutes() -> None:
    stages = commands.stages_of(parser().parse_args([]), Path("out"))
    assert [s.name for s in stages] == NAMES
    assert sum(s.seconds for s in stages) <= commands.TOTAL_S
    assert commands.TOTAL_S + 2 * GRACE_S < 480  # what a stage that does not end when asked to may take longer
    assert [s.name for s in stages if s.elastic] == ["kernels"]


def test_stages_are_chosen_by_name() -> None:
    given = parser().parse_args(["--only", "tests, report"])
    assert [s.name for s in commands.stages_of(given, Path("out"))] == ["tests", "report"]
    given = parser().parse_args(["--skip", "tests"])
    assert "tests" not in [s.name for s in commands.stages_of(given, Path("out"))]
    with pytest.raises(UsageError, match="unknown stage 'trainin'"):
        commands.stages_of(parser().parse_args(["--only", "trainin"]), Path("out"))


def test_a_mistake_is_a_line_and_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu"]) == 2
    assert "choose a folder with --out" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "name the folder" in capsys.readouterr().err
    assert main(["report", "nowhere"]) == 2


def test_the_plan_times_kernels_alone_at_the_first_shape_only() -> None:
    plan = kernel_plan()
    ops = [s for s in plan.subjects if s.level == "op"]
    assert {s.name for s in ops} == set(operations())
    wanted = {b.shape for b in plan.blocks for s in ops if s.takes(b) and plan.wanted(b, s)}
    assert wanted == {SHAPES[0]}
    layers = [s for s in plan.subjects if s.level == "layer"]
    assert all(plan.wanted(b, s) for b in plan.blocks for s in layers if b.m)
    quick = kernel_plan(quick=True)
    assert plan.blocks[: len(quick.blocks)] == quick.blocks
    assert estimate_s(quick, "cuda") < estimate_s(plan, "cuda")
    assert "skipped: " in listing(plan, "cpu")


def test_every_stage_runs_without_optional_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny sizes on the CPU; the report is then made where its packages are."""
    out = tmp_path / "out"
    monkeypatch.setenv("QUANTBENCH_CONFIGURATIONS", str(tmp_path / "configurations"))
    script = WITHOUT.format(names=set(OPTIONAL), out=str(out))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    codes = dict.fromkeys(("doctor", "tuning", "routes", "training", "kernels", "report", "repeated"), 0)
    assert f"CODES {codes}" in done.stdout
    assert "The records are good" in done.stdout
    assert "this proves the paths and shows nothing of the kernels" in done.stdout
    cells, bad = read_lines(out / KERNELS)
    assert not bad
    kernel = [r for r in cells if r["kind"] == "kernel"]
    assert {r["status"] for r in kernel} == {"ok"}
    assert len({r["key"] for r in kernel}) == len(kernel)  # nothing was timed twice
    assert {r["reason"] for r in cells if r["kind"] == "skipped" and r["level"] == "op"} == {
        "a Triton kernel needs a GPU; one that is interpreted is never timed"
    }
    assert [r["method"] for r in read_lines(out / TRAINING)[0]] == list(ARMS)
    assert {r["kind"] for r in read_lines(out / STAGES)[0]} == {"tuned", "first_call", "route", "bounds"}
    assert any((tmp_path / "configurations").glob("*.routes.json"))
    assert reports(["kernels", str(out)]) == 0
    assert "**CPU" in (out / "REPORT.md").read_text()


def test_a_module_that_cannot_be_imported_costs_its_own_stage_only(tmp_path: Path) -> None:
    code = "import sys; sys.modules['transformers'] = sys.modules['bench.gpu.training'] = None\n"
    code += "from bench.gpu.__main__ import main\n"
    code += f"raise SystemExit(main([sys.argv[1], '--device', 'cpu', '--out', {str(tmp_path)!r}]))"
    ends = {
        name: subprocess.run([sys.executable, "-c", code, name], cwd=ROOT, capture_output=True, text=True)
        for name in ("doctor", "training")
    }
    assert (ends["doctor"].returncode, ends["training"].returncode) == (0, 1), ends["doctor"].stderr
    assert "ModuleNotFoundError" in ends["training"].stderr


def test_the_speeds_of_the_device_are_a_stage(tmp_path: Path) -> None:
    stages = {s.name: s for s in commands.stages_of(parser().parse_args([]), tmp_path)}
    words = stages["speeds"].command
    assert words[2:6] == ("bench.gate", "record", "--device", "cuda")
    assert words[words.index("--file") + 1] == str(tmp_path / "speeds.json")
    assert "--only" not in words
    code = main(["--device", "cpu", "--out", str(tmp_path), "--only", "speeds"])
    assert code == 0
    record = json.loads((tmp_path / "speeds.json").read_text())
    assert set(record["cases"]) == {"unpack/4bit/1024x1024"}
    assert record["versions"]["torch"]
    assert record["device"]


def test_the_summary_is_there_after_each_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_stages(stages: Any, total: float, log: Path, environment: Any, after: Any) -> list[Outcome]:
        made: list[Outcome] = []
        for stage in stages:
            made.append(Outcome(stage.name, "ok", 0, 1.0, "done"))
            after(made)
            assert [o["name"] for o in json.loads((tmp_path / "summary.json").read_text())["stages"]] == [
                o.name for o in made
            ]
        return made

    monkeypatch.setattr(commands, "run_stages", run_stages)
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == 0


def test_the_summary_tells_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--device", "cpu", "--out", str(tmp_path), "--only", "doctor"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (code, summary["stages"][0]["status"]) == (0, "ok")
    assert summary["provenance"]["device"] == "cpu"
    assert summary["provenance"]["versions"]["torch"]
    assert "doctor  ok" in capsys.readouterr().out
