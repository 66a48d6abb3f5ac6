"""Runs with two workers: what befalls one cell does not touch the other, and times are taken with none beside."""

import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from bench.errors import StoppedError
from bench.records import FILE, read
from tests.bench.test_run import children_in, fates, start, wait_for_records
from tests.bench.toy_main import run_toys


def names(model, *methods, order="beneath"):
    return [f"{model}/task/{order}/{method}" for method in methods]


def statuses(folder):
    records, bad = read(folder / FILE)
    assert bad == []
    return {f"{r['cell']['model']}/{r['cell']['method']}": r["status"] for r in records}


def wait_until_gone(folder):
    for _ in range(100):
        if not children_in(folder):
            break
        time.sleep(0.05)
    assert children_in(folder) == []


@pytest.fixture(autouse=True)
def _little_memory_is_enough(monkeypatch):
    monkeypatch.setattr("bench.schedule.WORKER_BYTES", 1)


def test_two_cells_run_at_the_same_time(tmp_path, monkeypatch):
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    monkeypatch.setenv("TOY_MEETING", str(meeting))
    words = [sys.executable, "-m", "tests.bench.toy_main", str(tmp_path), "0", "2", *names("m", "meet")]
    done = subprocess.run([*words, *names("n", "meet")], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    records, _ = read(tmp_path / FILE)
    assert [r["workers"] for r in records] == [2, 2]


def test_what_befalls_one_cell_does_not_touch_the_other(tmp_path):
    bad = ["segfault", "killed", "hang", "exit", "memory"]
    good = [f"g{i}" for i in range(12)]
    # 0.2 s a cell: the good ones run through while the other worker dies again and again.
    assert run_toys(tmp_path, names("m", *bad) + names("n", *good), 0.2, threads=2, timeout_s=1.5) == 1
    got = statuses(tmp_path)
    assert all(got[f"n/{method}"] == "ok" for method in good)
    fate = [got[f"m/{method}"] for method in bad]
    assert fate == ["failed", "oom", "timeout", "failed", "oom"]
    records, _ = read(tmp_path / FILE)
    ok = [r for r in records if r["status"] == "ok"]
    assert len({r["training"]["pid"] for r in ok}) <= 2, "the child of the good cells stayed alive"


def test_one_big_group_is_shared_once_its_baseline_is_done(tmp_path):
    big = [*names("m", "fp32", order="lora"), *names("m", *(f"c{i}" for i in range(8)))]
    assert run_toys(tmp_path, [*big, *names("n", "a")], 0.1, threads=2) == 0
    records, _ = read(tmp_path / FILE)
    of_big = [r for r in records if r["cell"]["model"] == "m"]
    lora = next(r for r in of_big if r["cell"]["order"] == "lora")
    assert len({r["training"]["pid"] for r in of_big}) == 2
    others = [r for r in of_big if r is not lora]
    assert all(r["training"]["start_s"] >= lora["training"]["end_s"] for r in others)


def test_speed_cells_run_alone_and_after_the_others(tmp_path):
    speed = [*names("m", "s1", "s2", order="speed"), *names("n", "s3", order="speed")]
    assert run_toys(tmp_path, [*speed, *names("m", *"abc"), *names("n", *"de")], 0.1, threads=2) == 0
    records, _ = read(tmp_path / FILE)
    timed = [r for r in records if r["cell"]["order"] == "speed"]
    judged = [r for r in records if r["cell"]["order"] != "speed"]
    spans = [(r["training"]["start_s"], r["training"]["end_s"]) for r in timed]
    assert max(r["training"]["end_s"] for r in judged) <= min(start_s for start_s, _ in spans)
    assert all(end_s <= start_s for (_, end_s), (start_s, _) in pairwise(spans))
    assert {r["workers"] for r in judged} == {2}
    assert not any("workers" in r for r in timed)


@pytest.mark.parametrize("threads", [1, 3])
def test_each_phase_has_its_number_of_threads(tmp_path, threads):
    cells = [*names("m", "a"), *names("n", "a"), *names("m", "a", order="speed")]
    words = [sys.executable, "-m", "tests.bench.toy_threads", str(tmp_path), str(threads), *cells]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    records, _ = read(tmp_path / FILE)
    had = {r["cell"]["order"]: r["training"]["threads"] for r in records}
    assert had == {"beneath": 1, "speed": threads}
    for record in records:
        n = record["training"]["threads"]
        assert record["training"]["omp"] == str(n)
        assert record["provenance"]["threads"] == record["key_parts"]["threads"] == n


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_marks_every_running_cell(tmp_path, number):
    cells = names("m", *(f"m{i}" for i in range(9))) + names("n", *(f"n{i}" for i in range(9)))
    process = start(tmp_path, 1.0, cells, threads=2)
    for n in range(1, 10):  # until both workers have finished a cell, however slowly one of them starts
        wait_for_records(tmp_path, n)
        if {method[0] for method in fates(tmp_path)} == {"m", "n"}:
            break
    time.sleep(0.3)  # into the cells that follow
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert children_in(tmp_path) == []
    fate = fates(tmp_path)
    stopped = {method for method, (status, _) in fate.items() if status == "interrupted"}
    assert {method[0] for method in stopped} == {"m", "n"}
    assert len(stopped) == 2
    assert f"interrupted: {len(fate) - 2} of 18 cells saved" in err
    again = start(tmp_path, 0.0, cells, threads=2)
    assert again.communicate(timeout=60)[0] == "18 rows\n"


def test_a_killed_parent_takes_both_children_along_and_resumes(tmp_path):
    cells = [*names("m", "a", "b"), *names("n", "c", "d")]
    process = start(tmp_path, 60, cells, threads=2)
    for _ in range(200):
        if len(children_in(tmp_path)) == 2:
            break
        time.sleep(0.05)
    assert len(children_in(tmp_path)) == 2
    process.kill()
    process.communicate(timeout=30)
    wait_until_gone(tmp_path)
    again = start(tmp_path, 0.0, cells, threads=2)
    assert again.communicate(timeout=60)[0] == "4 rows\n"


def test_a_child_that_cannot_start_stops_the_run_and_leaves_none_behind(tmp_path):
    with pytest.raises(StoppedError, match="the worker process cannot start: AttributeError"):
        run_toys(tmp_path, [*names("m", "a"), *names("n", "a")], threads=2, executor="tests.bench.toys:nothing")
    assert children_in(tmp_path) == []
