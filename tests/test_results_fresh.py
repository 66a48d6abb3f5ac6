"""What tells stale figures: the syntax trees of what a method's figures depend on."""

from __future__ import annotations

import hashlib

import pytest

from bench.reports.readme import load
from tests import stale_results
from tests.stale_results import RESULTS, git, meaning, stale, told, unmoved


def test_the_records_are_of_a_commit_that_this_one_follows() -> None:
    for commit in {r["provenance"]["commit"] for r in load(RESULTS)}:
        if git("cat-file", "-e", f"{commit}^{{commit}}").returncode:
            pytest.skip(f"commit {commit[:12]} is not in this copy of the history")
        assert git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0, f"{commit} is of another history"


def test_a_figure_is_stale_when_a_file_it_depends_on_has_changed_and_only_then(monkeypatch) -> None:
    records = [r for r in load(RESULTS) if r["cell"]["order"] == "beneath"]
    monkeypatch.setattr(stale_results, "UNMOVED", [])
    monkeypatch.setattr(stale_results, "changed_since", lambda commit: frozenset())
    assert told(records) == []
    monkeypatch.setattr(stale_results, "changed_since", lambda commit: frozenset({"quant/methods/awq.py"}))
    found = {r["cell"]["method"] for r in records if stale(r)}
    assert {"awq-int4-g64", "awq-int3-g64"} <= found
    assert not {"nf4-g64", "gptq-int4-g64", "prune-50"} & found
    (line,) = told(records)
    assert line.endswith("changed since: quant/methods/awq.py")
    monkeypatch.setattr(stale_results, "changed_since", lambda commit: frozenset({"kernels/gemv.py"}))
    assert told(records) == []


def test_a_change_that_moved_nothing_counts_again_when_the_file_changes_once_more(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(stale_results, "ROOT", tmp_path)
    file = tmp_path / "quant.py"
    file.write_text("a = 1")
    known = {"commits": ["b", "c"], "files": {"quant.py": hashlib.sha256(b"a = 1").hexdigest()}, "because": "same"}
    monkeypatch.setattr(stale_results, "UNMOVED", [known])
    assert unmoved("c", "quant.py")
    assert not unmoved("d", "quant.py")
    assert not unmoved("c", "other.py")
    file.write_text("a = 2")
    assert not unmoved("c", "quant.py")


def test_packing_counts_for_every_figure(monkeypatch) -> None:
    records = [r for r in load(RESULTS) if r["cell"]["order"] == "beneath"]
    monkeypatch.setattr(stale_results, "UNMOVED", [])
    monkeypatch.setattr(stale_results, "changed_since", lambda commit: frozenset({"kernels/packing.py"}))
    assert all(stale(r) for r in records)


def test_meaning_is_what_the_interpreter_is_told() -> None:
    one = 'def f(x):\n    """Add one."""\n    return x + 1\n'
    assert meaning(one) == meaning("# a comment\n" + one.replace("Add one.", "The next number."))
    assert meaning(one) != meaning(one.replace("+ 1", "+ 2"))
    assert meaning(one) != meaning(one.replace('"""Add one."""', '"""Add one."""; x = 2'))
