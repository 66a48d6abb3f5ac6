"""Runs with cells that crash, hang, or are interrupted: the run goes on, and running again resumes."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from bench.records import FILE, current, read
from bench.schema import Cell
from tests.bench.toy_main import run_toys

MANY = [f"m{i}" for i in range(12)]


def fates(folder):
    records, bad = read(folder / FILE)
    assert bad == []
    return {r["cell"]["method"]: (r["status"], r["reason"]) for r in records}


def start(out, pause_s, methods, threads=1):
    words = [sys.executable, "-m", "tests.bench.toy_main", str(out), str(pause_s), str(threads), *methods]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_records(out, n):
    for _ in range(600):
        if (out / FILE).exists() and (out / FILE).read_bytes().count(b"\n") >= n:
            return
        time.sleep(0.05)
    pytest.fail("no record came")


def test_no_cell_takes_the_run_down(tmp_path, capfd):
    methods = ["segfault", "a", "killed", "b", "hang", "exit", "broken", "nan", "memory", "python-memory", "c"]
    assert run_toys(tmp_path, methods, timeout_s=2.0) == 1
    got = fates(tmp_path)
    assert {m: status for m, (status, _) in got.items()} == {
        "segfault": "failed",
        "a": "ok",
        "killed": "oom",
        "b": "ok",
        "hang": "timeout",
        "exit": "failed",
        "broken": "failed",
        "nan": "failed",
        "memory": "oom",
        "python-memory": "oom",
        "c": "ok",
    }
    assert "SIGSEGV" in got["segfault"][1]
    assert "SIGKILL" in got["killed"][1]
    assert got["hang"][1] == "not finished after 2 s"
    assert "exit code 7" in got["exit"][1]
    assert "accuracy.loss.value is not a finite number" in got["nan"][1]
    trace = tmp_path / got["broken"][1].partition("(")[2].rstrip(")")
    assert "no such layer" in trace.read_text()
    assert "Segmentation fault" in (tmp_path / "logs" / "worker.log").read_text()
    out, err = capfd.readouterr()
    assert out == "11 rows\n"
    assert "[11/11] toy/task/beneath/c/0  ok" in err
    assert "accuracy 80.0 %" in err
    assert "11 cells: " in err


def test_one_child_works_through_the_cells(tmp_path):
    assert run_toys(tmp_path, MANY[:3]) == 0
    records, _ = read(tmp_path / FILE)
    assert len({r["training"]["pid"] for r in records} - {os.getpid()}) == 1


def test_an_unsupported_weight_is_no_failure_and_not_tried_again(tmp_path, capfd):
    assert run_toys(tmp_path, ["unsupported"], timeout_s=60.0) == 0
    assert fates(tmp_path)["unsupported"] == ("unsupported", "4 columns cannot hold a group of 2:8")
    assert run_toys(tmp_path, ["unsupported"]) == 0
    assert "1 of 1 cells reused, 0 to do" in capfd.readouterr().err


def test_running_again_reuses_what_is_ok_and_retries_failures(tmp_path, capfd):
    run_toys(tmp_path, ["a", "b", "broken"])
    assert run_toys(tmp_path, ["a", "b", "broken"]) == 1
    assert "2 of 3 cells reused, 1 to do" in capfd.readouterr().err
    assert run_toys(tmp_path, ["a", "b", "broken"], rerun=()) == 1
    assert run_toys(tmp_path, ["a", "b"], force="*/a/*") == 0
    assert "1 of 2 cells reused, 1 to do" in capfd.readouterr().err
    assert run_toys(tmp_path, ["a", "b"], threads=2) == 0
    assert "2 of 2 cells reused" in capfd.readouterr().err, "a judged cell has one thread, however many there are"
    speed = ["toy/task/speed/a"]
    assert run_toys(tmp_path, speed, threads=1) == run_toys(tmp_path, speed, threads=2) == 0
    assert "reused" not in capfd.readouterr().err


def test_a_forced_cell_that_fails_is_a_failure_of_the_run_and_of_the_folder(tmp_path, capfd):
    assert run_toys(tmp_path, ["a", "b"]) == 0
    assert run_toys(tmp_path, ["a", "b"], executor="tests.bench.toys:fail") == 0, "nothing runs"
    capfd.readouterr()
    assert run_toys(tmp_path, ["a", "b"], force="*/b/*", executor="tests.bench.toys:fail") == 1
    err = capfd.readouterr().err
    assert "\nfailed  toy/task/beneath/b/0  ArithmeticError: the sum overflows" in err
    assert "\n2 cells: 1 ok, 1 failed." in err
    records, _ = read(tmp_path / FILE)
    assert [(r["cell"]["method"], r["status"]) for r in current(records)] == [("a", "ok"), ("b", "failed")]
    assert run_toys(tmp_path, ["a"]) == 0, "the failure is not of this run"
    assert run_toys(tmp_path, ["a", "b"]) == 0
    assert "1 of 2 cells reused, 1 to do" in capfd.readouterr().err


def test_a_run_says_first_how_long_it_should_take_and_why(tmp_path, capfd):
    past = [{"cell": Cell("toy", "task", "beneath", "a").as_dict(), "status": "ok", "wall_s": 240.0, "key": "other"}]
    run_toys(tmp_path, ["a", "b"], past=lambda: past)
    first = capfd.readouterr().err.splitlines()[0]
    assert first == (
        "2 cells to do, about 8 min with 1 worker (an estimate: 1 by the newest record of the same cell, "
        "1 without one by others of the same model, task and order)"
    )


def test_a_narrowed_run_reports_the_whole_folder(tmp_path, capfd):
    run_toys(tmp_path, ["a", "b", "broken"])
    capfd.readouterr()
    assert run_toys(tmp_path, ["a"]) == 0
    out, err = capfd.readouterr()
    assert out == "3 rows\n"
    assert "\n1 cells: 1 ok. Report of all 3 cells in the folder: " in err
    assert "broken" not in err, "that cell was not part of this run"


def test_a_missing_gpu_skips_the_cells_with_the_reason(tmp_path, capfd, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_toys(tmp_path, ["a"], device="cuda") == 0
    status, reason = fates(tmp_path)["a"]
    assert status == "skipped"
    assert reason.startswith("needs a CUDA device, none found (torch ")
    assert "skipped: 1 cells" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_what_is_saved_and_resumes(tmp_path, number):
    process = start(tmp_path, 0.8, MANY[:5])
    wait_for_records(tmp_path, 2)
    time.sleep(0.3)  # the next cell is under way by now
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    finished = sum(status == "ok" for status, _ in fates(tmp_path).values())
    assert f"interrupted: {finished} of 5 cells saved. Resume: bench " in err
    assert [s for s, _ in fates(tmp_path).values()].count("interrupted") == 1
    assert children_in(tmp_path) == []
    assert finished >= 2
    again = start(tmp_path, 0.8, MANY[:5])
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0
    assert f"{finished} of 5 cells reused, {5 - finished} to do" in err


def children_in(folder):
    """Processes that still have the folder's worker log open."""
    log = os.path.realpath(folder / "logs" / "worker.log")
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            links = [os.path.realpath(f"/proc/{pid}/fd/{fd}") for fd in ("1", "2")]
        except OSError:
            continue
        if log in links:
            found.append(int(pid))
    return found


def test_kill_9_at_random_moments_loses_nothing_finished(tmp_path):
    moments = random.Random(0)
    saved: set[str] = set()
    for _ in range(4):
        process = start(tmp_path, 0.1, MANY)
        wait_for_records(tmp_path, min(len(saved) + 1, len(MANY)))
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.communicate(timeout=30)
        records, bad = read(tmp_path / FILE)
        assert bad == []
        now = {r["cell"]["method"] for r in records}
        assert saved <= now
        saved = now
    for _ in range(100):
        if not children_in(tmp_path):
            break
        time.sleep(0.05)
    assert children_in(tmp_path) == []
    process = start(tmp_path, 0.1, MANY)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"{len(saved)} of 12 cells reused" in err
    lines = [json.loads(line) for line in (tmp_path / FILE).read_bytes().splitlines()]
    assert sorted(r["cell"]["method"] for r in lines) == sorted(MANY)
    assert out == "12 rows\n"


def test_a_killed_parent_takes_its_busy_child_along(tmp_path):
    process = start(tmp_path, 60, ["a"])
    for _ in range(200):
        if children_in(tmp_path):
            break
        time.sleep(0.05)
    assert len(children_in(tmp_path)) == 1
    process.kill()
    process.communicate(timeout=30)
    for _ in range(100):
        if not children_in(tmp_path):
            break
        time.sleep(0.05)
    assert children_in(tmp_path) == []
