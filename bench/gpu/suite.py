"""The GPU tests shared out among processes, so that their kernels are compiled side by side; what came of them.

Compiling, not computing, takes the time of these tests; all processes use the one GPU and the one cache of Triton.
Needs pytest and none of its plugins. What was not reached in time is counted, and is no success.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.gpu.machine import installed

__all__ = ["Counts", "command_of", "gpu_files", "processes", "run_suite"]

ROOT = Path(__file__).resolve().parents[2]
MOST = 14
NO_TESTS = 5  # pytest's exit code


@dataclass(frozen=True)
class Counts:
    """Outcomes; `unreached` were collected and not run; `failures` are sentences."""

    passed: int
    failed: int
    skipped: int
    unreached: int
    failures: tuple[str, ...]

    @property
    def good(self) -> bool:
        """All of them ran, at least one passed, and none failed."""
        return self.passed > 0 and not self.failed and not self.unreached and not self.failures

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def gpu_files(folder: Path = ROOT / "tests") -> list[str]:
    """The test files that hold GPU tests, relative to the project."""
    found = (p for p in folder.rglob("test_*.py") if re.search(r"mark\.gpu", p.read_text(encoding="utf-8")))
    return sorted(str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path) for path in found)


def processes() -> int:
    """As many as there are processors to compile on, less two."""
    return max(1, min(MOST, (os.cpu_count() or 1) - 2))


def command_of(files: Sequence[str], have: Mapping[str, str | None]) -> list[str]:
    """pytest's command line, with the settings of those of its plugins that are there.

    A warning fails no test here: the libraries of such a machine are not those that the suite was written with.
    """
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["-o", "filterwarnings=default", "-p", "bench.gpu.shard", "--tb=short", "--no-header"]
    command += ["--continue-on-collection-errors"]
    return [*command, *(["--benchmark-disable"] if have.get("pytest-benchmark") else []), *files]


def run_suite(seconds: float, files: Sequence[str] | None = None, n: int | None = None) -> Counts:
    """Run the tests of `files` (default: all GPU tests) in `n` processes and end them after `seconds`."""
    number = n or processes()
    command = command_of(gpu_files() if files is None else files, installed("pytest-benchmark"))
    with tempfile.TemporaryDirectory() as folder:
        notes = [Path(folder) / f"{i}.jsonl" for i in range(number)]
        started = [_started(command, f"{i}/{number}", note) for i, note in enumerate(notes)]
        end = time.monotonic() + seconds
        codes = [_code(process, end) for process in started]
        tails = [note.with_suffix(".txt").read_text(encoding="utf-8", errors="replace") for note in notes]
        return _counted(notes, codes, tails)


def _started(command: Sequence[str], shard: str, note: Path) -> subprocess.Popen[bytes]:
    # each process keeps to one thread of the CPU: there are as many processes as processors
    environment = {**os.environ, "SHARD": shard, "SHARD_FILE": str(note), "OMP_NUM_THREADS": "1"}
    note.touch()
    with note.with_suffix(".txt").open("wb") as out:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)


def _code(process: subprocess.Popen[bytes], end: float) -> int | None:
    """The exit code; None, the process ended, when it is not through at `end`."""
    try:
        return process.wait(timeout=max(end - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def _counted(notes: Sequence[Path], codes: Sequence[int | None], tails: Sequence[str]) -> Counts:
    collected, outcomes, failures = 0, dict.fromkeys(("passed", "failed", "skipped"), 0), []
    done = 0
    for i, (note, code, tail) in enumerate(zip(notes, codes, tails, strict=True)):
        lines = [json.loads(line) for line in note.read_text(encoding="utf-8").splitlines()]
        own = [line for line in lines if "test" in line]
        collected += sum(line.get("collected", 0) for line in lines)
        done += len({line["test"] for line in own})
        for line in own:
            outcomes[line["outcome"]] += 1
            if line["outcome"] == "failed":
                failures.append(f"{line['test']}: {line['reason']}")
        known = code in (0, NO_TESTS, None) or (code == 1 and any(line["outcome"] == "failed" for line in own))
        if not known:
            last = next((line for line in reversed(tail.splitlines()) if line.strip()), "nothing was printed")
            failures.append(f"process {i} of pytest ended with code {code}: {last[:300]}")
    return Counts(**outcomes, unreached=collected - done, failures=tuple(failures))
