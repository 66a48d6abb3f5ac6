"""Laws of the run of all stages: budgets, a failure that stops nothing, a lost device, tests shared out."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

from bench.gpu.shard import urgency
from bench.gpu.stages import LOST, Outcome, Stage, plan_seconds, run_stage, run_stages, table
from bench.gpu.suite import Counts, _Ended, counted, gpu_files, run_suite

PY = sys.executable
FLAKY = """
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


def suite(tmp_path: Path, code: str, n: int = 1, seconds: float = 60.0) -> tuple[Counts, list[dict[str, Any]]]:
    """What a file of GPU tests comes to, and the notes of it."""
    file, notes = tmp_path / "test_toy.py", tmp_path / "notes.jsonl"
    file.write_text("import os, time\nimport pytest\npytestmark = pytest.mark.gpu\n" + code)
    counts = run_suite(seconds, [str(file)], n, notes)
    return counts, [json.loads(line) for line in notes.read_text().splitlines()]


def test_tests_are_shared_out_and_counted_once(tmp_path: Path) -> None:
    counts, notes = suite(tmp_path, FLAKY, n=2)
    assert (counts.passed, counts.failed, counts.skipped, counts.unreached) == (5, 1, 1, 0)
    assert len(counts.failures) == 1
    assert "one is not two" in counts.failures[0]
    assert not counts.good
    assert len({line["begun"] for line in notes if "begun" in line}) == 7
    (failed,) = (line for line in notes if line.get("outcome") == "failed")
    assert "assert 1 == 2" in failed["text"]


def test_a_test_that_takes_long_holds_up_no_other(tmp_path: Path) -> None:
    code = "def test_compiled(): time.sleep(30)\n@pytest.mark.parametrize('i', range(9))\ndef test_one(i): pass\n"
    counts, _ = suite(tmp_path, code, n=2, seconds=9.0)
    assert (counts.passed, counts.failed, counts.unreached, counts.good) == (9, 0, 1, False)
    assert [name.rpartition("::")[2] for name in counts.left] == ["test_compiled"]
    assert counts.told() == "9 passed, failed 0, skipped 0, unreached 1"


def test_the_most_telling_tests_come_first() -> None:
    names = [
        "tests/kernels/test_quantize_gpu.py::test_it_is[codebook_quantize-torch.float32]",
        "tests/kernels/test_gpu.py::test_it_is[affine_matmul-torch.float16]",
        "tests/kernels/test_quantize_gpu.py::test_it_is[codebook_quantize-torch.bfloat16]",
        "tests/kernels/test_gpu.py::test_it_is[affine_dequantize-torch.bfloat16]",
        "tests/kernels/test_dispatch_gpu.py::test_compiled_with_cuda_graphs[torch.bfloat16]",
    ]
    assert sorted(names, key=urgency) == [names[4], names[3], names[2], names[1], names[0]]


def test_what_times_something_runs_at_the_end_and_alone(tmp_path: Path) -> None:
    code = "def test_a(): time.sleep(1)\ndef test_b(): time.sleep(1)\n@pytest.mark.alone\ndef test_timed(): pass\n"
    counts, notes = suite(tmp_path, code, n=2)
    assert (counts.passed, counts.good) == (3, True)
    assert notes[-1]["test"].endswith("::test_timed")
    assert [line["process"] for line in notes if "test_timed" in str(line)] == ["alone.0"] * 2


def test_a_test_that_ends_its_process_is_a_failure_and_the_others_run(tmp_path: Path) -> None:
    counts, _ = suite(tmp_path, "def test_a(): pass\ndef test_b(): os.abort()\ndef test_c(): pass\n")
    assert (counts.passed, counts.failed, counts.unreached) == (2, 1, 0)
    assert "ended with code -6 in " in counts.failures[0]
    assert "::test_b: " in counts.failures[0]


def test_after_a_lost_device_a_new_process_goes_on(tmp_path: Path) -> None:
    code = """
import torch
def gone(): raise RuntimeError("an illegal memory access")
def test_a(): pass
def test_b(): torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, gone
def test_c(): assert not torch.cuda.is_initialized()
"""
    counts, notes = suite(tmp_path, code)
    assert (counts.passed, counts.failed, counts.unreached) == (2, 1, 0)
    assert "::test_b: the device was lost: RuntimeError: an illegal memory access" in counts.failures[0]
    assert {line["process"] for line in notes} == {"0.0", "0.1"}


def test_what_was_not_reached_is_no_success(tmp_path: Path) -> None:
    code = "def test_quick(): pass\ndef test_long(): time.sleep(100)\ndef test_after(): pass\n"
    counts, _ = suite(tmp_path, code, seconds=8.0)
    assert (counts.passed, counts.failed, counts.unreached, counts.good) == (1, 0, 2, False)


def test_a_file_that_cannot_be_read_is_one_failure(tmp_path: Path) -> None:
    counts, _ = suite(tmp_path, "import nothing_of_this_name\n", n=2)
    assert (counts.passed, counts.failed, len(counts.failures)) == (0, 1, 1)
    assert "nothing_of_this_name" in counts.failures[0]


def test_processes_that_say_nothing_are_failures() -> None:
    counts = counted(["a"], [], [_Ended("0.0", 1, "no module named pytest")])
    assert (counts.unreached, counts.good) == (1, False)
    assert counts.failures == ("process 0.0 of pytest ended with code 1: no module named pytest",)


def test_without_a_gpu_all_are_skipped_which_is_no_failure() -> None:
    assert Counts(0, 0, 5, 0, ()).all_skipped
    assert not Counts(0, 0, 5, 1, ()).all_skipped
    assert not Counts(0, 0, 5, 0, ("a process ended",)).all_skipped
    assert not Counts(0, 0, 0, 0, ()).all_skipped


def test_the_gpu_tests_are_found() -> None:
    files = gpu_files()
    assert any(name.endswith("kernels/test_gpu.py") for name in files)
    assert not any(name.endswith("test_packing.py") for name in files)
    assert Counts(3, 0, 1, 0, ()).good
    assert not Counts(0, 0, 5, 0, ()).good
