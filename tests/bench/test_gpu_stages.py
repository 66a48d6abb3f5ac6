"""Laws of the run of all stages: budgets, a failure that stops nothing, a lost device, tests shared out."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from bench.gpu.stages import LOST, Outcome, Stage, plan_seconds, run_stage, run_stages, table
from bench.gpu.suite import Counts, command_of, gpu_files, run_suite

PY = sys.executable
FLAKY = """
import pytest
pytestmark = pytest.mark.gpu

@pytest.mark.parametrize("i", range(5))
def test_passes(i):
    pass

def test_fails():
    assert 1 == 2, "one is not two"

@pytest.mark.skip(reason="nothing to see")
def test_skipped():
    pass
"""


def stage(name: str, code: str, seconds: float = 30.0, elastic: bool = False) -> Stage:
    return Stage(name, (PY, "-c", code), seconds, elastic, "a toy")


def test_a_failure_or_a_stage_too_long_does_not_stop_the_next(tmp_path: Path) -> None:
    stages = [
        stage("bad", "print('about to fail'); raise SystemExit(3)"),
        stage("long", "import time; print('begun', flush=True); time.sleep(60)", 1.5),
        stage("good", "print('fine')"),
    ]
    outcomes = run_stages(stages, 60.0, tmp_path / "log.txt", {"A": "b"})
    assert [(o.name, o.status, o.code) for o in outcomes] == [
        ("bad", "failed", 3),
        ("long", "timeout", None),
        ("good", "ok", 0),
    ]
    assert outcomes[0].note == "about to fail"
    assert 1.4 < outcomes[1].wall_s < 20
    log = (tmp_path / "log.txt").read_text()
    assert "begun" in log
    assert "fine" in log
    assert "timeout" in table(outcomes)


def test_without_time_a_stage_is_skipped(tmp_path: Path) -> None:
    (outcome,) = run_stages([stage("late", "print(1)")], 0.5, tmp_path / "log.txt", {})
    assert (outcome.status, outcome.note) == ("skipped", "no time was left")


def test_an_elastic_stage_takes_what_the_others_leave() -> None:
    stages = [stage("a", "", 20), stage("b", "", 100, elastic=True), stage("c", "", 30)]
    assert plan_seconds(stages, 450, 0, 0) == 20
    assert plan_seconds(stages, 450, 5, 1) == 450 - 5 - 30
    assert plan_seconds(stages, 450, 440, 2) == 10
    assert plan_seconds(stages, 450, 445, 1) == 0


def test_a_lost_device_is_left_to_the_next_process_without_who_did_it() -> None:
    code = f"""
import sys
if "--without" in sys.argv:
    print("went on without", sys.argv[-1]); raise SystemExit(0)
print("the device was lost: bad-kernel, matmul 8x8 m=1: CUDA error"); raise SystemExit({LOST})
"""
    outcome = run_stage(stage("kernels", code), 60.0, io.StringIO(), {})
    assert (outcome.status, outcome.note) == ("ok", "went on without bad-kernel")


def test_a_device_that_stays_lost_is_given_up() -> None:
    log = io.StringIO()
    code = f"print('the device was lost: all, x', flush=True); raise SystemExit({LOST})"
    outcome = run_stage(stage("kernels", code), 60.0, log, {})
    assert (outcome.status, outcome.code) == ("failed", LOST)
    assert log.getvalue().count("the device was lost") == 4


def test_the_stage_is_told_its_seconds_and_the_environment() -> None:
    code = "import os, sys; print(os.environ['ROOM'], sys.argv[1])"
    told = Stage("s", (PY, "-c", code, "{seconds}"), 30)
    assert run_stage(told, 25.0, io.StringIO(), {"ROOM": "here"}).note == "here 17"


def test_an_outcome_is_a_record() -> None:
    made = Outcome("s", "ok", 0, 1.5, "done").as_dict()
    assert json.loads(json.dumps(made)) == {"name": "s", "status": "ok", "code": 0, "wall_s": 1.5, "note": "done"}


def test_tests_are_shared_out_and_counted_once(tmp_path: Path) -> None:
    file = tmp_path / "test_toy.py"
    file.write_text(FLAKY)
    counts = run_suite(100.0, [str(file)], n=2)
    assert (counts.passed, counts.failed, counts.skipped, counts.unreached) == (5, 1, 1, 0)
    assert len(counts.failures) == 1
    assert "one is not two" in counts.failures[0]
    assert not counts.good


def test_what_was_not_reached_is_no_success(tmp_path: Path) -> None:
    file = tmp_path / "test_long.py"
    file.write_text(
        "import time, pytest\npytestmark = pytest.mark.gpu\n"
        "def test_quick(): pass\ndef test_long(): time.sleep(100)\ndef test_after(): pass\n"
    )
    counts = run_suite(12.0, [str(file)], n=1)
    assert (counts.passed, counts.failed, counts.unreached, counts.good) == (1, 0, 2, False)


def test_a_file_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "test_broken.py"
    file.write_text("import nothing_of_this_name\n")
    counts = run_suite(60.0, [str(file)], n=1)
    assert counts.passed == 0
    assert "ended with code" in counts.failures[0]


def test_the_gpu_tests_are_found_and_need_no_plugin() -> None:
    files = gpu_files()
    assert any(name.endswith("kernels/test_gpu.py") for name in files)
    assert not any(name.endswith("test_packing.py") for name in files)
    assert "--benchmark-disable" not in command_of(files, {})
    assert "--benchmark-disable" in command_of(files, {"pytest-benchmark": "5"})
    assert Counts(3, 0, 1, 0, ()).good
    assert not Counts(0, 0, 5, 0, ()).good
