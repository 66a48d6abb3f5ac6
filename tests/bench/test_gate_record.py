"""A record of speeds: written, found again by device, and compared with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import pytest

import bench.gate.__main__ as command
from bench.errors import UsageError
from bench.gate import record
from bench.gate.cases import Case, Ready, cpu_cases
from bench.gate.compare import WrongResultError
from bench.gate.verdict import Rule
from tests.bench.gate_toys import Machine, write_tree

ABOUT = {"device": "an abacus", "clock": "simulated seconds", "torch": "2.0"}
RULE = Rule(0.15)


class Plain(Machine):
    """A machine on which a plain product takes a second, and a case what `machine` says."""

    def __init__(self, seed: int, machine: Machine) -> None:
        super().__init__(seed)
        self.machine = machine

    def __call__(self, call, runs=1):
        value = call()
        return self.machine((lambda: value) if isinstance(value, float) else lambda: 1.0)


def measured(tmp_path: Path, seed: int, ratio: float, name: str = "case"):
    """The series of a case that takes `ratio` simulated seconds, while plain products take one each."""
    machine = Machine(seed)
    case = Case(name, lambda side: Ready(machine.maker(ratio), lambda: None))
    tree = write_tree(tmp_path / f"tree{seed}", {})

    return dict(record.series(tree, lambda *_: [case], Plain(seed, machine)))


@pytest.mark.parametrize(("ratio", "verdict"), [(0.5, "OK"), (0.6, "SLOW"), (0.42, "FASTER")])
def test_a_case_is_judged_by_its_ratio_then_and_now(tmp_path: Path, ratio: float, verdict: str):
    before, now = measured(tmp_path, 1, 0.5), measured(tmp_path, 2, ratio)
    path = tmp_path / "abacus" / record.FILE
    record.write(path, ABOUT, before)
    (row,) = record.checked(record.read(path), now, RULE)
    assert row.verdict == verdict
    assert row.found.change.low <= ratio / 0.5 <= row.found.change.high


def test_a_record_reads_back_as_it_was_and_is_found_by_what_it_was_measured_on(tmp_path: Path):
    found = measured(tmp_path, 1, 0.5)
    path = tmp_path / "abacus" / record.FILE
    record.write(path, ABOUT, found)
    assert record.read(path)["cases"]["case"]["log_ratios"] == pytest.approx(found["case"].ratios, abs=5e-6)
    assert math.exp(sum(found["case"].ratios) / 36) == pytest.approx(0.5, rel=0.1)
    assert record.find(tmp_path, ABOUT) == path
    with pytest.raises(record.NoRecordError) as caught:
        record.find(tmp_path, {**ABOUT, "torch": "2.1"})
    assert caught.value.exit_code == 4
    wanted = "device 'an abacus', clock 'simulated seconds', torch '2.1'"
    text = f"no record of {wanted} below {tmp_path} ({path} is of torch '2.0'). Make one: python -m bench.gate record"
    assert str(caught.value) == text


def broken(side):
    raise RuntimeError("out of memory\nand more")


def test_what_fails_or_is_late_is_told_and_the_others_are_on_record(tmp_path: Path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(record, "time", SimpleNamespace(monotonic=lambda: now))
    machine = Machine(3)
    good = Ready(machine.maker(0.5), lambda: None)
    ready = {"wrong": lambda side: Ready(machine.maker(1.0), lambda: "off by one"), "bad": broken}
    cases = [Case(name, ready.get(name, lambda side: good)) for name in ("wrong", "bad", "good", "late")]
    tree = write_tree(tmp_path / "tree", {})
    with pytest.raises(WrongResultError, match="off by one; it was not timed"):
        dict(record.series(tree, lambda *_: cases, machine))
    told: dict[str, str] = {}
    found = []
    for name, _ in record.series(tree, lambda *_: cases, Plain(3, machine), spare=told.__setitem__, seconds=9):
        found.append(name)
        now = 10.0
    assert found == ["good"]
    assert told == {"wrong": ANY, "bad": "out of memory", "late": record.LATE}
    assert "off by one" in told["wrong"]


def test_the_command_writes_each_case_at_once_to_the_file_it_is_given(tmp_path: Path, monkeypatch, capsys):
    file, seen = tmp_path / "out" / "speeds.json", []

    def series(*_, spare, **__):
        yield "a", record.Series([0.0] * 6, [0.0] * 6)
        seen.append(json.loads(file.read_text())["cases"].keys())
        spare("b", "it is wrong")
        spare("c", record.LATE)
        yield "d", record.Series([0.0] * 6, [0.0] * 6)

    monkeypatch.setattr(record, "series", series)
    assert command.main(["record", "--device", "cpu", "--file", str(file), "--seconds", "9"]) == 2
    assert seen == [{"a"}]
    written = record.read(file)
    assert set(written["cases"]) == {"a", "d"}
    assert written["lacking"] == {"b": "it is wrong", "c": record.LATE}
    assert written["versions"]["torch"]
    assert capsys.readouterr().out.endswith(f"2 cases on record in {file}; failed 1, not reached 1\n")


def test_a_new_record_replaces_that_of_its_own_device_only(tmp_path: Path):
    path = tmp_path / "abacus" / record.FILE
    here = {**ABOUT, "folder": "abacus"}
    assert record.place(tmp_path, here) == path
    record.write(path, ABOUT, measured(tmp_path, 1, 0.5))
    assert record.place(tmp_path, here) == record.place(tmp_path, {**here, "torch": "2.1"}) == path
    with pytest.raises(UsageError, match="is of 'an abacus', this is 'a slide rule': move it"):
        record.place(tmp_path, {**here, "device": "a slide rule"})
    with pytest.raises(UsageError, match="move it"):
        record.place(tmp_path / "none", {**here, "device": "a slide rule"}, path)
    assert record.place(tmp_path, {**here, "torch": "2.1"}, tmp_path / "new" / record.FILE).parent.name == "new"
    moved = tmp_path / "elsewhere" / record.FILE
    moved.parent.mkdir()
    path.rename(moved)
    assert record.place(tmp_path, here) == moved


def test_cases_that_came_and_went_are_listed(tmp_path: Path):
    old, new = measured(tmp_path, 1, 0.5, "old"), measured(tmp_path, 2, 0.5, "new")
    path = tmp_path / record.FILE
    record.write(path, ABOUT, old)
    rows = record.checked(record.read(path), new, RULE)
    assert [(row.name, row.verdict) for row in rows] == [("old", "REMOVED"), ("new", "NEW")]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 1, "cases": {}}', '{"schema": 1, "cases": {"a": {"log_ratios": [1]}}}']
)
def test_a_damaged_record_names_its_file(tmp_path: Path, text: str):
    path = tmp_path / record.FILE
    path.write_text(text)
    with pytest.raises(UsageError, match=r"speeds\.json"):
        record.read(path)


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path):
    path = tmp_path / record.FILE
    path.write_text(json.dumps({"schema": 2, "cases": {}, **ABOUT}))
    with pytest.raises(UsageError, match="has schema 2, this version reads 1"):
        record.read(path)


RECORDS = sorted((command.ROOT / "results").glob(f"*/{record.FILE}"))


@pytest.mark.skipif(not RECORDS, reason="no record of speeds is committed")
def test_committed_records_hold_every_case_of_their_device():
    for path in RECORDS:
        cases = record.read(path)["cases"]
        assert all(math.isfinite(v) for case in cases.values() for v in case["log_ratios"])
        if any(name.startswith("linear/") for name in cases):
            assert set(cases) == {case.name for case in cpu_cases()}
