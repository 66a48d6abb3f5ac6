"""The committed figures are of the code that stands here.

What a method's figures depend on is `bench.key.sources_of`. A file counts as changed since the commit of a record when
its syntax tree differs, docstrings left out: comments and wording make no figure stale. Judged cells run decoded
weights on a CPU, so Triton kernels and engines count for times only.
"""

from __future__ import annotations

import ast
import subprocess
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import pytest

from bench.key import NOT_MEASURING, file_hashes, sources_of
from bench.records import Record
from bench.reports.readme import load
from quant import METHODS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "cpu-2-cores"
TIMES_ONLY = ("kernels/", "quant/engines/")


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def meaning(source: str) -> str:
    """The syntax tree of `source` without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


@lru_cache
def changed_since(commit: str) -> frozenset[str]:
    """The files that were there at `commit` and mean something else now; a new file decides nothing by itself."""
    done = git("diff", "--name-only", "--no-renames", "--diff-filter=MD", commit, "--", "bench", "kernels", "quant")
    assert done.returncode == 0, done.stderr
    out = set()
    for name in done.stdout.split():
        now = ROOT / name
        if name.split("/")[1] in NOT_MEASURING:
            continue
        if name.endswith(".py") and not (
            now.exists() and meaning(git("show", f"{commit}:{name}").stdout) == meaning(now.read_text("utf-8"))
        ):
            out.add(name)
    return frozenset(out)


def stale(record: Record) -> list[str]:
    """The changed files that the figures of `record` depend on; one that is gone may have been any method's."""
    files = sources_of(METHODS[record["cell"]["method"]], file_hashes())
    timed = record["cell"]["order"] == "speed"
    gone = {name for name in changed_since(record["provenance"]["commit"]) if not (ROOT / name).exists()}
    found = {name for name in changed_since(record["provenance"]["commit"]) if name in files} | gone
    return sorted(name for name in found if timed or not name.startswith(TIMES_ONLY))


def test_the_records_are_of_a_commit_that_this_one_follows() -> None:
    for commit in {r["provenance"]["commit"] for r in load(RESULTS)}:
        if git("cat-file", "-e", f"{commit}^{{commit}}").returncode:
            pytest.skip(f"commit {commit[:12]} is not in this copy of the history")
        assert git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0, f"{commit} is of another history"


def test_no_committed_figure_is_of_code_that_has_changed_since() -> None:
    records = load(RESULTS)
    if any(git("cat-file", "-e", f"{r['provenance']['commit']}^{{commit}}").returncode for r in records[:1]):
        pytest.skip("the commit of the records is not in this copy of the history")
    by_files: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        if files := stale(record):
            by_files[", ".join(files)].append("/".join(map(str, record["cell"].values())))
    told = [f"{len(cells)} cells, as {cells[0]}: changed since: {files}" for files, cells in by_files.items()]
    assert not told, "measure again (make bench), these are stale:\n" + "\n".join(told)


def test_meaning_is_what_the_interpreter_is_told() -> None:
    one = 'def f(x):\n    """Add one."""\n    return x + 1\n'
    assert meaning(one) == meaning("# a comment\n" + one.replace("Add one.", "The next number."))
    assert meaning(one) != meaning(one.replace("+ 1", "+ 2"))
    assert meaning(one) != meaning(one.replace('"""Add one."""', '"""Add one."""; x = 2'))
