"""The README's example method: one new file, and it is in the list, the contract tests, the benchmark and the plots."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sabotage import ROOT, copy_project

BLOCK = re.compile(r"`(quant/methods/\w+\.py)`:\n\n```python\n(.*?)```", re.S)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the example of the README as its one added file."""
    path, code = BLOCK.search((ROOT / "README.md").read_text(encoding="utf-8")).groups()
    root = copy_project(tmp_path_factory.mktemp("example"))
    assert len(code.strip().splitlines()) <= 25
    (root / path).write_text(code, encoding="utf-8")
    return root


def run(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=project, env=env, capture_output=True, text=True, timeout=280
    )


def test_it_is_listed(project: Path):
    done = run(project, "bench", "list", "methods", "--json")
    assert done.returncode == 0, done.stderr
    assert any("ternary" in str(entry) for entry in json.loads(done.stdout))


def test_it_passes_the_contract_tests(project: Path):
    done = run(project, "pytest", "tests/quant/test_contract.py", "-k", "ternary")
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout[-3000:]
    assert passed, done.stdout[-3000:]
    assert int(passed.group(1)) >= 10


def test_it_is_measured_and_plotted(project: Path):
    done = run(project, "bench", "run", "quick", "--methods", "ternary", "--models", "tiny-causal", "--out", "out")
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (project / "out" / "records.jsonl").read_text().splitlines()]
    assert any(r["cell"]["method"] == "ternary" and r["status"] == "ok" for r in records)
    assert "ternary" in next((project / "out" / "tables").glob("methods-causal*.md")).read_text()
    drawn = next((project / "out" / "plots").glob("pareto-causal*.csv")).read_text()
    assert "ternary" in drawn
