"""A record of speeds: written, found again by device, and compared with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import bench.gate.__main__ as command
from bench.errors import UsageError
from bench.gate import record
from bench.gate.cases import Case, Ready, cpu_cases
from bench.gate.verdict import Rule
from tests.bench.gate_toys import Machine, write_tree

ABOUT = {"device": "an abacus", "clock": "simulated seconds", "torch": "2.0"}
RULE = Rule(0.15)


def measured(tmp_path: Path, seed: int, ratio: float, name: str = "case"):
    """The series of a case that takes `ratio` simulated seconds, while plain products take one each."""
    machine = Machine(seed)
    case = Case(name, lambda side: Ready(machine.maker(ratio), lambda: None))
    tree = write_tree(tmp_path / f"tree{seed}", {})

    class Plain(Machine):
        def __call__(self, call, runs=1):
            value = call()
            return machine((lambda: value) if isinstance(value, float) else lambda: 1.0)

    return dict(record.series(tree, lambda *_: [case], Plain(seed)))


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


def test_a_new_record_replaces_that_of_its_own_device_only(tmp_path: Path):
    path = tmp_path / "abacus" / record.FILE
    here = {**ABOUT, "folder": "abacus"}
    assert record.place(tmp_path, here) == path
    record.write(path, ABOUT, measured(tmp_path, 1, 0.5))
    assert record.place(tmp_path, here) == record.place(tmp_path, {**here, "torch": "2.1"}) == path
    with pytest.raises(UsageError, match="is of 'an abacus', this is 'a slide rule': move it"):
        record.place(tmp_path, {**here, "device": "a slide rule"})
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
