"""The GPU tests shared out among processes, so that their kernels are compiled side by side; what came of them.

Compiling, not computing, takes the time of these tests; all processes use the one GPU and the one cache of Triton.
Needs pytest and none of its plugins. A process that ends before its time is started again, without the test it ended
in. What times something runs at the end, alone. What was not reached in time is counted, and is no success.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu.stages import LOST

__all__ = ["COLLECTED", "Counts", "command_of", "counted", "gpu_files", "processes", "run_suite"]

ROOT = Path(__file__).resolve().parents[2]
MOST = 14
COLLECTED = "collected.json"
GOOD = (0, 5)  # pytest's exit codes: all passed, nothing to run
FAILED = 1
RESTARTS = 3  # of one process
ALONE_S, ALONE_SHARE = 25.0, 0.2
Note = dict[str, Any]


@dataclass(frozen=True)
class Counts:
    """Outcomes, one a test; `unreached` were collected and not run to their end, `left` says how many of which.

    `failures` are sentences, also of processes that ended early.
    """

    passed: int
    failed: int
    skipped: int
    unreached: int
    failures: tuple[str, ...]
    left: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """All of them ran, at least one passed, and none failed."""
        return self.passed > 0 and not self.failed and not self.unreached and not self.failures

    @property
    def all_skipped(self) -> bool:
        """As on a machine without a GPU: the tests can be read, and not one of them ran."""
        return self.skipped > 0 and not (self.passed or self.failed or self.unreached or self.failures)

    def told(self) -> str:
        """As a sentence."""
        return f"{self.passed} passed, failed {self.failed}, skipped {self.skipped}, unreached {self.unreached}"

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def gpu_files(folder: Path = ROOT / "tests") -> list[str]:
    """The test files that hold GPU tests, relative to the project."""
    found = (p for p in folder.rglob("test_*.py") if re.search(r"mark\.gpu", p.read_text(encoding="utf-8")))
    return sorted(str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path) for path in found)


def processes() -> int:
    """As many as there are processors to compile on, less two."""
    return max(1, min(MOST, (os.cpu_count() or 1) - 2))


def command_of(files: Sequence[str]) -> list[str]:
    """pytest's command line. A warning fails no test here: such a machine has other libraries than were written for."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["-o", "filterwarnings=default", "-p", "bench.gpu.shard", "--tb=short", "--no-header"]
    return [*command, "--continue-on-collection-errors", *files]


def run_suite(
    seconds: float, files: Sequence[str] | None = None, n: int | None = None, notes: Path | None = None
) -> Counts:
    """Run the tests of `files` (default: all GPU tests) in `n` processes and end them after `seconds`.

    `notes` takes a line of JSON for each test begun and each outcome, at once.
    """
    given = list(gpu_files() if files is None else files)
    alone = [file for file in given if "mark.alone" in (ROOT / file).read_text(encoding="utf-8")]
    kept = min(ALONE_S, ALONE_SHARE * seconds) if alone else 0.0
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        path = notes or Path(folder) / "notes.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        ended = _Group(command_of(given), Path(folder) / "together", path, False).run(n or processes(), end - kept)
        if alone:
            ended += _Group(command_of(alone), Path(folder) / "alone", path, True).run(1, end)
        collected = [name for file in Path(folder).glob(f"*/{COLLECTED}") for name in json.loads(file.read_bytes())]
        return counted(collected, _notes(path), ended)


@dataclass(frozen=True)
class _Ended:
    """A process that is over: its name, exit code (None: it was ended) and last line."""

    name: str
    code: int | None
    last: str


class _Group:
    """Processes with one list of tests."""

    def __init__(self, command: Sequence[str], folder: Path, notes: Path, alone: bool) -> None:
        self.command, self.folder, self.notes, self.alone = command, folder, notes, alone
        folder.mkdir()

    def run(self, n: int, end: float) -> list[_Ended]:
        """Run `n` processes until nothing is left or time is over."""
        running = {i: self.start(i, 0) for i in range(n)}
        tries = dict.fromkeys(running, 0)
        ended: list[_Ended] = []
        while running:
            time.sleep(0.05)
            for i, process in list(running.items()):
                code, late = process.poll(), time.monotonic() >= end
                if code is None and not late:
                    continue
                if code is None:
                    process.kill()
                    process.wait()
                del running[i]
                ended.append(_Ended(self.name(i, tries[i]), code, self.last(i, tries[i])))
                killed = code is not None and (code == LOST or code < 0)
                if killed and not late and tries[i] < RESTARTS:
                    tries[i] += 1
                    running[i] = self.start(i, tries[i])
        return ended

    def name(self, i: int, again: int) -> str:
        return f"{'alone' if self.alone else i}.{again}"

    def start(self, i: int, again: int) -> subprocess.Popen[bytes]:
        name = self.name(i, again)
        own = {"SHARD": name, "SHARD_TAKEN": str(self.folder), "SHARD_NOTES": str(self.notes.resolve())}
        own |= {"SHARD_ALONE": str(int(self.alone)), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        # there are as many processes as processors
        own |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        with (self.folder / f"{name}.txt").open("wb") as out:
            return subprocess.Popen(
                self.command, cwd=ROOT, env={**os.environ, **own}, stdout=out, stderr=subprocess.STDOUT
            )

    def last(self, i: int, again: int) -> str:
        text = (self.folder / f"{self.name(i, again)}.txt").read_text(encoding="utf-8", errors="replace")
        return next((line for line in reversed(text.splitlines()) if line.strip()), "nothing was printed")[:300]


def counted(collected: Iterable[str], notes: Sequence[Note], ended: Iterable[_Ended]) -> Counts:
    """What the notes and the ends of the processes come to. A test has the worst of its outcomes."""
    worst = ("failed", "passed", "skipped")
    outcomes: dict[str, str] = {}
    failures: list[str] = []
    begun = {str(line["process"]): str(line["begun"]) for line in notes if "begun" in line}  # of each, the last
    for line in notes:
        if "test" in line:
            name, new = str(line["test"]), str(line["outcome"])
            outcomes[name] = min(outcomes.get(name, new), new, key=worst.index)
            if new == "failed":
                failures.append(f"{name}: {line['reason']}")
        if "lost" in line:
            outcomes[str(line["lost"])] = "failed"
            failures.append(f"{line['lost']}: the device was lost: {line['reason']}")
    lost = {str(line["process"]) for line in notes if "lost" in line}
    for process in ended:
        if process.code in (None, *GOOD) or process.name in lost or (process.code == FAILED and failures):
            continue
        last = begun.get(process.name, "")
        within = f" in {last}" if last and last not in outcomes else ""
        if within:
            outcomes[last] = "failed"
        failures.append(f"process {process.name} of pytest ended with code {process.code}{within}: {process.last}")
    left = Counter(name.partition("[")[0] for name in collected if name not in outcomes)
    by = Counter(outcomes.values())
    return Counts(by["passed"], by["failed"], by["skipped"], left.total(), tuple(failures), dict(left))


def _notes(path: Path) -> list[Note]:
    """The lines of the file; one that was cut short is none."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
