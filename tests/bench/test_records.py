"""The record file: nothing finished is lost, nothing bad is silent."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import CannotRunError, StoppedError, UsageError
from bench.records import FILE, Store, current, latest, parse, read, to_line


def record(key="k", status="ok", method="nf4-g64", **more):
    cell = {"model": "m", "task": "t", "order": "beneath", "method": method, "seed": 0}
    return {"schema": 1, "key": key, "status": status, "cell": cell, **more}


def stored(folder):
    return [json.loads(line) for line in (folder / FILE).read_bytes().splitlines()]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_a_record_survives_its_line(value):
    line = to_line(record(extra=value))
    assert line.count(b"\n") == 1
    assert parse(line) == record(extra=value)


def test_nan_is_never_written():
    with pytest.raises(ValueError, match="JSON compliant"):
        to_line(record(wall_s=float("nan")))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"schema":1,"key":', "invalid JSON at column"),
        (b'{"schema":1,"key":"a","key":"b"}', "duplicate key 'key'"),
        (to_line(record(x=1)).replace(b'"x":1', b'"x":NaN'), "NaN is not JSON"),
        (to_line(record(x=1)).replace(b'"x":1', b'"x":1e999'), "1e999 is not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"key":"a"}', "schema is None"),
        (to_line(record(status="fine")), "status is 'fine'"),
        (to_line(record()).replace(b"beneath", b"above"), "unknown order 'above'"),
        (b"\xff\xfe", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
    ],
)
def test_bad_lines_are_reported_set_aside_and_the_rest_kept(tmp_path, line, why):
    path = tmp_path / FILE
    path.write_bytes(to_line(record("a")) + line.rstrip(b"\n") + b"\n" + to_line(record("b")))
    with Store(tmp_path) as store:
        assert [r["key"] for r in store.records] == ["a", "b"]
        (message,) = store.messages
    assert message.startswith(f"{path}:2: ")
    assert why in message
    assert message.endswith("Moved to records.jsonl.bad; its cell runs again")
    assert [r["key"] for r in stored(tmp_path)] == ["a", "b"]
    assert (tmp_path / "records.jsonl.bad").read_bytes() == line.rstrip(b"\n") + b"\n"


@pytest.mark.parametrize("cut", [1, 20, -2, -1])
def test_a_torn_tail_is_mended_before_the_next_record(tmp_path, cut):
    line = to_line(record("b"))
    (tmp_path / FILE).write_bytes(to_line(record("a")) + line[:cut])
    with Store(tmp_path) as store:
        store.append(record("c"))
    kept = ["a", "b", "c"] if cut == -1 else ["a", "c"]
    assert [r["key"] for r in stored(tmp_path)] == kept


def test_reading_leaves_an_unfinished_line_to_its_writer(tmp_path):
    (tmp_path / FILE).write_bytes(to_line(record("a")) + b'{"schema"')
    records, bad = read(tmp_path / FILE)
    assert [r["key"] for r in records] == ["a"]
    assert bad == []


def test_a_newer_schema_is_refused_and_the_file_left_alone(tmp_path):
    data = to_line(record("a")) + to_line(record("b") | {"schema": 3})
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(UsageError) as error:
        Store(tmp_path)
    assert str(error.value) == f"{tmp_path / FILE}:2 has schema 3, this version reads <= 1: upgrade"
    assert (tmp_path / FILE).read_bytes() == data


@pytest.mark.parametrize(
    ("statuses", "counts"),
    [
        (["ok", "ok"], 1),
        (["failed", "ok"], 1),
        (["ok", "failed"], 1),
        (["ok", "oom"], 1),
        (["ok", "timeout"], 1),
        (["ok", "unsupported"], 1),
        (["ok", "interrupted"], 0),
        (["ok", "skipped"], 0),
        (["ok", "failed", "interrupted"], 2),
        (["ok", "interrupted", "failed"], 2),
        (["failed", "interrupted"], 1),
        (["interrupted", "ok", "interrupted", "skipped"], 1),
    ],
)
def test_the_last_record_of_a_key_counts_unless_it_was_cut_off_after_an_ok_one(statuses, counts):
    records = [record("a", status, x=i) for i, status in enumerate(statuses)]
    assert [r["x"] for r in latest(records).values()] == [counts]
    assert [r["x"] for r in current(records)] == [counts]


def test_a_cell_stands_for_the_key_under_which_it_ran_last():
    records = [record("a", x=2), record("b", "failed", x=3, method="bf16")]
    assert [r["x"] for r in latest(records).values()] == [2, 3]
    changed = [record("old", x=1), record("new", "oom", x=2), record("new", "ok", x=3)]
    assert [r["x"] for r in current(changed)] == [3]


def test_the_disk_is_full_in_the_middle_of_a_line(tmp_path):
    script = f"""
import resource, signal, sys
sys.path.insert(0, {os.getcwd()!r})
from pathlib import Path
from bench.errors import StoppedError
from bench.records import Store
from tests.bench.test_records import record
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Store(Path({str(tmp_path)!r})) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, resource.RLIM_INFINITY))
    try:
        for i in range(9):
            store.append(record(f"k{{i}}", pad="x" * 900))
    except StoppedError as error:
        print(error); sys.exit(error.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert "cannot write" in done.stdout
    assert "2 finished cells are safe" in done.stdout
    assert [r["key"] for r in stored(tmp_path)] == ["k0", "k1"]


def test_a_second_run_is_refused_and_names_the_first(tmp_path):
    with Store(tmp_path):
        with pytest.raises(CannotRunError, match=rf"in use by another run \(pid {os.getpid()}\)") as error:
            Store(tmp_path)
        assert error.value.exit_code == 4
    (tmp_path / ".lock").write_text("999999\n")
    with Store(tmp_path):
        assert (tmp_path / ".lock").read_text().strip() == str(os.getpid())


def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoppedError, match="Choose another folder with --out"):
        Store(tmp_path / "file" / "results")
    (tmp_path / "r" / FILE).mkdir(parents=True)
    with pytest.raises((StoppedError, UsageError), match="cannot"):
        Store(tmp_path / "r")
