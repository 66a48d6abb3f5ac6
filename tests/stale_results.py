"""Which committed figures are of code that means something else now: `python -m tests.stale_results`, `make stale`.

What a method's figures depend on is `bench.key.sources_of`. A file counts as changed since the commit of a record when
its syntax tree differs, docstrings left out: comments and wording make no figure stale. Judged cells run decoded
weights on a CPU, so Triton kernels and engines count for times only. `tests/unmoved.toml` names changes after which the
same figures were measured again, each for the file as it is then: one more change, and it counts.
"""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from bench.key import NOT_MEASURING, file_hashes, sources_of
from bench.records import Record
from bench.reports.readme import load
from quant import METHODS
from quant.peers import CONTROLS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "cpu-2-cores"
FOLDERS = {  # and the command that makes it
    "cpu-2-cores": "make bench",
    "peers": "make bench-peers",
    "recovery": "make bench-recovery",
    "starts": "bench run starts",
    "calibration": "bench run calibration",
    "causes": "bench run causes",
    "gradual": "bench run gradual",
}
TIMES_ONLY = ("kernels/", "quant/engines/")
UNMOVED = tomllib.loads((ROOT / "tests" / "unmoved.toml").read_text("utf-8"))["unmoved"]
ALWAYS = "kernels/packing.py"  # every quantizer packs with it


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
    """The changed files that the figures of `record` depend on; one that is gone may have been any method's.

    None for another library's method: what it depends on is not of this project.
    """
    known = METHODS | CONTROLS
    if record["cell"]["method"] not in known:
        return []
    files = sources_of(known[record["cell"]["method"]], file_hashes())
    timed = record["cell"]["order"] == "speed"
    gone = {name for name in changed_since(record["provenance"]["commit"]) if not (ROOT / name).exists()}
    found = {name for name in changed_since(record["provenance"]["commit"]) if name in files} | gone
    found = {name for name in found if not unmoved(record["provenance"]["commit"], name)}
    return sorted(name for name in found if timed or name == ALWAYS or not name.startswith(TIMES_ONLY))


def unmoved(commit: str, name: str) -> bool:
    """Whether the file as it is now is known to give the figures that it gave at `commit`."""
    file = ROOT / name
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
    return any(commit in e["commits"] and e["files"].get(name) == digest for e in UNMOVED)


def told(records: Sequence[Record]) -> list[str]:
    """A line for every set of changed files: how many cells depend on it."""
    by_files: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        if files := stale(record):
            by_files[", ".join(files)].append("/".join(map(str, record["cell"].values())))
    return [f"{len(cells)} cells, as {cells[0]}: changed since: {files}" for files, cells in by_files.items()]


def main() -> int:
    """1 and a line for each set of stale cells; 0 when none is; 2 where the history lacks the records' commit."""
    stale_ones = 0
    for folder, target in FOLDERS.items():
        records = load(ROOT / "results" / folder)
        for commit in {r["provenance"]["commit"] for r in records}:
            if git("cat-file", "-e", f"{commit}^{{commit}}").returncode:
                print(
                    f"error: commit {commit[:12]} is not in this copy of the history; fetch all of it", file=sys.stderr
                )
                return 2
        found = told(records)
        stale_ones += len(found)
        said = [f"results/{folder}: measure again ({target}):", *found] if found else []
        print("\n".join(said or [f"results/{folder}: no figure is stale"]))
    return 1 if stale_ones else 0


if __name__ == "__main__":
    sys.exit(main())
