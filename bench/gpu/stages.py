"""Stages of `make gpu`: each a process of its own with its own time, whose failure does not stop the next.

The output of a stage goes to the screen and to a log; when its time is over its whole process group is ended. What an
early stage leaves of its time goes to the stage that can use it (`elastic`). A stage that lost the device and says who
did it is started again without that.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

__all__ = ["LOST", "LOST_BY", "Outcome", "Stage", "plan_seconds", "run_stages", "table"]

LOST = 75  # exit code of a process whose device does not answer any more: a new one may go on
RESTARTS = 3
GRACE_S = 8.0
LOST_BY = re.compile(r"^the device was lost: ([^,]+),")


@dataclass(frozen=True)
class Stage:
    """A command and its seconds. `{seconds}` in the command becomes what the stage really has."""

    name: str
    command: tuple[str, ...]
    seconds: float
    elastic: bool = False
    what: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: "ok", "failed", "timeout" or "skipped", with its exit code, seconds and last lines."""

    name: str
    status: str
    code: int | None
    wall_s: float
    note: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def plan_seconds(stages: Sequence[Stage], total: float, spent: float, at: int) -> float:
    """Seconds of stage `at` after `spent` seconds: its own, or for an elastic one all that later ones do not need."""
    stage = stages[at]
    later = sum(s.seconds for s in stages[at + 1 :])
    left = total - spent
    if stage.elastic:
        return max(left - later, 0.0)
    return max(min(stage.seconds, left), 0.0)


def run_stages(
    stages: Sequence[Stage],
    total: float,
    log: Path,
    environment: Mapping[str, str],
    after: Callable[[Sequence[Outcome]], None] = lambda outcomes: None,
) -> list[Outcome]:
    """Run them in order within `total` seconds; the outcomes, one a stage. `after` each it is given those so far."""
    outcomes: list[Outcome] = []
    begin = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        for i, stage in enumerate(stages):
            seconds = plan_seconds(stages, total, time.monotonic() - begin, i)
            if seconds < 1:
                outcomes.append(Outcome(stage.name, "skipped", None, 0.0, "no time was left"))
                after(outcomes)
                continue
            _say(f"== {stage.name}: {stage.what} (at most {seconds:.0f} s)", file)
            outcomes.append(run_stage(stage, seconds, file, environment))
            after(outcomes)
            _say(f"== {stage.name}: {outcomes[-1].status} after {outcomes[-1].wall_s:.0f} s", file)
    return outcomes


def run_stage(stage: Stage, seconds: float, log: IO[str], environment: Mapping[str, str]) -> Outcome:
    """Run one stage, again after a lost device while time is left."""
    begin = time.monotonic()
    extra: list[str] = []
    lines: list[str] = []
    code: int | None = None
    for _ in range(RESTARTS + 1):
        left = seconds - (time.monotonic() - begin)
        if left < 1:
            break
        command = [part.replace("{seconds}", f"{max(left - GRACE_S, 1):.0f}") for part in stage.command]
        code, lines = _ended(command + extra, left, log, environment)
        guilty = [found[1] for line in lines if (found := LOST_BY.match(line))]
        if code != LOST or not guilty:
            break
        extra += ["--without", guilty[-1]]
    wall = time.monotonic() - begin
    note = next((line for line in reversed(lines) if line.strip()), "")
    status = "ok" if code == 0 else "timeout" if code is None else "failed"
    return Outcome(stage.name, status, code, round(wall, 1), note[:200])


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as text, one line each."""
    wide = max(len(o.name) for o in outcomes)
    return "\n".join(f"{o.name:<{wide}}  {o.status:<8} {o.wall_s:6.1f} s  {o.note}" for o in outcomes)


def _ended(
    command: Sequence[str], seconds: float, log: IO[str], environment: Mapping[str, str]
) -> tuple[int | None, list[str]]:
    """(exit code or None when it had to be stopped, its lines)."""
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    stream = process.stdout

    def copy() -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))
            _say(lines[-1], log)

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    code: int | None = None
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _stop(process)
        reader.join(timeout=GRACE_S)
        if not reader.is_alive():
            stream.close()
    return code, lines


def _stop(process: subprocess.Popen[str]) -> None:
    """End the group of a process: asked first, then not."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE_S)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _say(line: str, log: IO[str]) -> None:
    print(line, flush=True)
    log.write(line + "\n")
    log.flush()
