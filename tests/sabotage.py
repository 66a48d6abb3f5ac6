"""Plant one-line defects, one at a time, and check that the tests catch every one: `make sabotage`.

Each defect of `tests/defects.toml` names a file, a line's text (found exactly once), what to put in its place, and the
tests that must turn red. The project is copied to a temporary folder first; the checkout is never changed. A defect
whose text is not found any more is an error, and so is one whose tests were red before it was planted.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "quant", "bench", "tests")


@dataclass(frozen=True)
class Defect:
    """One line to spoil: `old` must stand exactly once in `file`; `tests` are pytest arguments."""

    name: str
    file: str
    old: str
    new: str
    tests: str

    def plant(self, root: Path) -> None:
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise SystemExit(
                f"error: defect {self.name!r}: {self.old!r} stands {text.count(self.old)} times in {self.file}"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


def defects() -> list[Defect]:
    """All planted defects, in the order of the file."""
    table = tomllib.loads((ROOT / "tests" / "defects.toml").read_text(encoding="utf-8"))
    return [Defect(**entry) for entry in table["defect"]]


def copy_project(target: Path) -> Path:
    """The packages, the tests and pyproject.toml, without caches."""
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)
    return target


def red(root: Path, tests: str) -> tuple[bool, str]:
    """Whether the tests fail in `root`, and the test that did. Import errors and failures both count as red."""
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-rfE", *tests.split()]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=600)
    lines = done.stdout.splitlines()
    if done.returncode not in (0, 1, 2):
        raise SystemExit(f"error: pytest {tests}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode != 0, next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "")


def try_defect(defect: Defect) -> tuple[Defect, bool, str, float]:
    """Plant it in a fresh copy and run its tests."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = copy_project(Path(folder))
        defect.plant(root)
        caught, last = red(root, defect.tests)
    return defect, caught, last, time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when the tests are green without a defect and every defect is caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.sabotage", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="pattern over the defects' names")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    chosen = [d for d in defects() if fnmatch.fnmatch(d.name, options.only)]
    if not chosen:
        raise SystemExit(f"error: --only {options.only!r} matched 0 of {len(defects())} defects")
    with tempfile.TemporaryDirectory() as folder:
        healthy = copy_project(Path(folder))
        files = " ".join(sorted({word for d in chosen for word in d.tests.split() if word.startswith("tests/")}))
        broken, last = red(healthy, files)
    if broken:
        print(f"error: the tests are red without any defect: {last}", file=sys.stderr)
        return 1
    missed = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for defect, caught, last, seconds in pool.map(try_defect, chosen):
            missed += not caught
            print(f"{'caught' if caught else 'MISSED'}  {defect.name:<44} {seconds:5.1f} s  {last}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} planted defects caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
