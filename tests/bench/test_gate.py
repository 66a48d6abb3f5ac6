"""The gate from a repository to its exit code, on small trees: by real seconds once, else by simulated ones."""

from __future__ import annotations

import json
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

import bench.gate.__main__ as command
from bench.gate import record
from bench.gate.cases import Case, Missing, Ready, fresh, relative_error
from bench.gate.clocks import ThreadClock, one_thread
from bench.gate.compare import Row, WrongResultError, compared, exit_code
from bench.gate.show import last_line, table
from bench.gate.verdict import Rule
from tests.bench.gate_toys import Machine, commit_all, write_tree

TOY = """import torch
def product(x):
    for _ in range({rounds}):
        y = x @ x
    return y + {wrong}
def same(x):
    for _ in range(8):
        y = x @ x
    return y
"""


def toy(folder: Path, rounds: int, wrong: float = 0.0):
    return write_tree(folder, {"kernels/toy.py": TOY.format(rounds=rounds, wrong=wrong)})


def product(side, *, name: str) -> Ready:
    function = getattr(side.module("kernels.toy"), name, None)
    if function is None:
        raise Missing(f"no function {name!r}")
    x = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))

    def wrong():
        error = relative_error(function(x), x.double() @ x.double())
        return None if error < 1e-5 else f"relative error {error:.3g}"

    return Ready(lambda rng: partial(function, fresh(x, rng)), wrong)


def toy_cases(*_):
    return [Case(f"toy/{name}", partial(product, name=name)) for name in ("product", "same")]


def simulated(name: str, machine: Machine, seconds) -> Case:
    """A case whose seconds are `seconds(version, prefix)`."""
    return Case(name, lambda side: Ready(machine.maker(seconds(side.tree.label, side.prefix)), lambda: None))


def test_real_seconds_of_twice_the_work_are_slow_and_of_the_same_work_are_not(tmp_path: Path):
    trees = toy(tmp_path / "old", 8), toy(tmp_path / "new", 16)
    with one_thread():
        rows = compared(*trees, toy_cases, ThreadClock(), Rule(0.5, looks=(8, 16, 32)), progress=False)
    by_name = {row.name: row for row in rows}
    slow, same = by_name["toy/product"], by_name["toy/same"]
    assert (slow.verdict, same.verdict, exit_code(rows)) == ("SLOW", "OK", 1)
    assert slow.found.change.low < 2.0 < slow.found.change.high * 1.1  # the loop and the sum beside the products
    assert "confirmed by a second measurement" in slow.reason
    assert same.found.control.low < 1.1


@pytest.mark.parametrize(("old", "new", "guilty"), [(0.0, 1.0, "new"), (1.0, 0.0, "old")])
def test_a_wrong_result_of_either_version_ends_it_before_any_time(tmp_path: Path, old: float, new: float, guilty: str):
    class Untouched(Machine):
        def __call__(self, call, runs=1):
            raise AssertionError("timed")

    trees = toy(tmp_path / "old", 8, old), toy(tmp_path / "new", 8, new)
    with pytest.raises(WrongResultError, match="relative error") as caught:
        compared(*trees, toy_cases, Untouched(0), Rule(), progress=False)
    assert str(caught.value).startswith(f"toy/product: wrong result in {guilty}: ")
    assert str(caught.value).endswith("; nothing was timed")
    assert caught.value.exit_code == 2


def test_injected_slow_downs_of_the_margin_are_found_among_cases_that_are_the_same(tmp_path: Path):
    """All the gate does, in simulated seconds: checks, blocks, a second measurement of what is slow, the exit code."""
    machine = Machine(5)

    def seconds(ratio: float):
        return lambda label, prefix: 0.02 * (ratio if label == "new" else 1.0)

    trees = toy(tmp_path / "old", 8), toy(tmp_path / "new", 8)
    slower = [simulated(f"slower{i}", machine, seconds(1.05)) for i in range(20)]
    same = [simulated(f"same{i}", machine, seconds(1.0)) for i in range(20)]
    rows = compared(*trees, lambda *_: slower + same, machine, Rule(0.05), progress=False)
    count = Counter((row.name[:4], row.verdict) for row in rows)
    assert count["slow", "SLOW"] >= 17  # found in 95 of 100, twice in 90: fewer than 15 in one of ten thousand
    assert count["same", "SLOW"] == 0
    assert count["same", "OK"] >= 18
    assert exit_code(rows) == 1


def test_a_chance_slow_down_is_measured_again_and_the_second_finding_stands(tmp_path: Path):
    machine, loads = Machine(3), []

    def seconds(label: str, prefix: str) -> float:
        loads.extend([prefix] * (prefix not in loads))
        unlucky = label == "new" and loads.index(prefix) < 3  # only as loaded the first time
        return 0.02 * (1.2 if unlucky else 1.0)

    trees = toy(tmp_path / "old", 8), toy(tmp_path / "new", 8)
    cases = [simulated("unlucky", machine, seconds)]
    (row,) = compared(*trees, lambda *_: cases, machine, Rule(), progress=False)
    assert row.verdict == "OK"
    assert row.first.verdict == "SLOW"
    assert "not confirmed" in row.reason
    assert len(loads) == 6


def test_what_one_version_lacks_is_listed_and_what_is_gone_fails(tmp_path: Path):
    old, new = toy(tmp_path / "old", 8), toy(tmp_path / "new", 8)
    text = (old.folder / "kernels/toy.py").read_text()
    (new.folder / "kernels/toy.py").write_text(text.replace("def same", "def other"))
    names = ("product", "same", "other", "nothing")

    def cases(*_):
        return [Case(name, partial(product, name=name)) for name in names]

    rows = compared(old, new, cases, _Still(0), Rule(), progress=False)
    assert [row.verdict for row in rows] == ["OK", "REMOVED", "NEW", "CHANGED"]
    assert rows[1].reason == "new: no function 'same'"
    assert exit_code(rows) == 1


def test_inputs_that_the_reference_does_not_take_are_said_to_have_changed(tmp_path: Path):
    old = write_tree(tmp_path / "old", {"kernels/toy.py": "def product(y, z): ...\n"})
    rows = compared(old, toy(tmp_path / "new", 8), lambda *_: toy_cases()[:1], _Still(0), Rule(), progress=False)
    assert [row.verdict for row in rows] == ["CHANGED"]
    assert "old does not take the same inputs: TypeError: product() missing" in rows[0].reason
    assert exit_code(rows) == 3


def test_work_in_other_threads_is_not_judged(tmp_path: Path):
    """A version that hands its work to another thread looks free to a clock of this thread."""

    def elsewhere(x):
        worker = threading.Thread(target=lambda: [x @ x for _ in range(10)])
        worker.start()
        worker.join()

    x = torch.randn(64, 64)
    case = Case("threads", lambda side: Ready(lambda rng: partial(elsewhere, x), lambda: None))
    trees = toy(tmp_path / "old", 8), toy(tmp_path / "new", 8)
    rule = Rule(0.9, looks=(6,))
    (row,) = compared(*trees, lambda *_: [case], ThreadClock(), rule, progress=False)
    assert row.verdict == "INCONCLUSIVE"
    assert "in other threads" in row.reason


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["OK", "FASTER", "NEW"], 0),
        (["OK", "INCONCLUSIVE"], 3),
        (["INCONCLUSIVE", "SLOW"], 1),
        (["CHANGED", "OK"], 3),
        (["REMOVED", "CHANGED"], 1),
    ],
)
def test_exit_codes_and_the_last_line_agree(verdicts: list[str], code: int):
    rows = [Row(f"case{i}", verdict) for i, verdict in enumerate(verdicts)]
    assert exit_code(rows) == code
    assert last_line(rows, Rule()).startswith({0: "OK:", 1: "SLOW:", 3: "INCONCLUSIVE:"}[code])
    assert all(f"case{i}" in table(rows) for i in range(len(rows)))


class _Still(Machine):
    """Every call takes as long."""

    def __call__(self, call, runs=1):
        return 0.02


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed toy tree in the place of the project, its two cases, and a still clock."""
    toy(tmp_path, 8)
    commit_all(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "_cases", lambda device, only: lambda *_: [c for c in toy_cases() if only == "*"])
    monkeypatch.setattr(command, "_clock", lambda device: _Still(0))
    return tmp_path


def run(repository: Path, *words: str) -> int:
    places = (
        "--device",
        "cpu",
        "--json",
        str(repository / "results/local/gate.json"),
        "--results",
        str(repository / "results"),
    )
    return command.main([*words, *places])


def test_same_sources_need_no_time(repository: Path, capsys: pytest.CaptureFixture[str]):
    assert run(repository, "HEAD") == 0
    assert "kernels/ and quant/ are the same as in" in capsys.readouterr().out
    assert not (repository / "results").exists()


def test_findings_are_written_and_the_verdict_is_last(repository: Path, capsys: pytest.CaptureFixture[str]):
    toy(repository, 9)
    assert run(repository, "HEAD", "--margin", "10%") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "OK: 2 OK (margin 10.0%)"
    written = json.loads((repository / "results/local/gate.json").read_text())
    assert [case["verdict"] for case in written["cases"]] == ["OK", "OK"]
    assert (written["margin"], written["exit_code"]) == (0.1, 0)
    toy(repository, 9, wrong=1.0)
    assert run(repository, "HEAD") == 2
    assert not (repository / "results/local/gate.json").exists()  # a wrong result leaves no findings of another run


def test_a_record_is_made_and_what_became_slower_since_fails(repository, capsys, monkeypatch):
    monkeypatch.setattr(record, "BLOCKS", 12)
    assert run(repository, "record") == 0
    assert capsys.readouterr().out.startswith("2 cases on record in ")
    assert run(repository, "check") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "OK: 2 OK (margin 15.0%)"

    class Slowed(_Still):
        def __call__(self, call, runs=1):
            return 0.026 if isinstance(call, partial) and "product" in call.func.__name__ else 0.02

    monkeypatch.setattr(command, "_clock", lambda device: Slowed(0))
    assert run(repository, "check") == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "SLOW: 1 SLOW, 1 OK (margin 15.0%)"
    assert told.err.split().count("toy/product") == 2  # a second measurement counts
    assert told.err.split().count("toy/same") == 1


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["nowhere"], 2, "error: unknown commit 'nowhere': git knows no such commit, branch or tag here"),
        (["HEAD", "--same", "--only", "x"], 2, "error: --only 'x' matches no case"),
        (["HEAD", "--margin", "0"], 2, "error: argument --margin: '0' is not a margin between 0 and 1"),
        ([], 2, "error: the following arguments are required: REF"),
        (["check"], 4, "Make one: python -m bench.gate record"),
    ],
)
def test_mistakes_end_in_a_line_and_a_code(repository, capsys, words, code, text):
    assert run(repository, *words) == code
    assert text in capsys.readouterr().err


def test_wrong_results_end_in_a_line_and_code_2(repository: Path, capsys: pytest.CaptureFixture[str]):
    toy(repository, 8, wrong=1.0)
    assert run(repository, "HEAD") == 2
    assert "error: toy/product: wrong result in working tree: relative error" in capsys.readouterr().err


def test_nothing_is_timed_in_the_interpreter(repository, capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run(repository, "HEAD", "--same") == 4
    assert "TRITON_INTERPRET is set: times of interpreted kernels mean nothing" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_a_gpu_that_is_not_there_is_said(repository: Path, capsys: pytest.CaptureFixture[str]):
    assert command.main(["HEAD", "--device", "cuda"]) == 4
    assert "error: --device cuda: no CUDA device here" in capsys.readouterr().err
