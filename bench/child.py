"""The parent's end of a worker: a child process, the pipe to it, and the cell that it is busy with.

Children are forked from a server that has imported the heavy libraries.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.errors import StoppedError
from bench.schema import Cell
from bench.worker import Outcome, serve

__all__ = ["EXECUTOR", "Worker", "warm_up"]

EXECUTOR = "bench.cells:execute"
START_S = 300.0  # importing torch and transformers on a slow disk
_CONTEXT = multiprocessing.get_context("forkserver")


def warm_up(executor: str) -> None:
    """Start the server that children are forked from, with `executor`'s libraries loaded, and do not wait for it.

    OpenMP reads its settings when it is loaded: they are set here, before any child exists. It starts with one thread,
    and a child sets torch's to its own number. A passive wait leaves the processor to others between parallel regions.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    heavy = ["torch", "transformers", "quant"] if executor == EXECUTOR else []
    _CONTEXT.set_forkserver_preload([*heavy, executor.partition(":")[0], "bench.worker"])
    with _quiet():
        multiprocessing.forkserver.ensure_running()


@contextmanager
def _quiet() -> Iterator[None]:
    """What a process started inside says on its own output goes nowhere: it would tear the progress display."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, old in zip((1, 2), saved, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(nowhere)


class Worker:
    """One child process that computes with `threads` threads and takes one cell at a time."""

    def __init__(self, executor: str, threads: int, log: Path) -> None:
        self.log = log
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=serve, args=(theirs, executor, threads, log), daemon=True)
        self._process.start()
        theirs.close()
        self._ready = False
        self._asked: tuple[Cell, Any] | None = None
        self._limit_s = 0.0
        self._begin(START_S)

    def _begin(self, limit_s: float) -> None:
        self.started = datetime.now(UTC)
        self._since = time.perf_counter()
        self._deadline = self._since + limit_s

    @property
    def wall_s(self) -> float:
        """Seconds since the child got its cell; before that, since it was started."""
        return time.perf_counter() - self._since

    @property
    def left_s(self) -> float:
        """Seconds until it is late."""
        return max(0.0, self._deadline - time.perf_counter())

    @property
    def waits_for(self) -> list[Any]:
        """What becomes readable when there is something to `look` at."""
        return [self._pipe, self._process.sentinel]

    def give(self, cell: Cell, protocol: Any, limit_s: float, device: str = "cpu") -> None:
        """Have `cell` executed on `device`, at once or as soon as the child is ready."""
        self._asked, self._limit_s = (cell, protocol, *([] if device == "cpu" else [device])), limit_s
        if self._ready:
            self._send()

    def _send(self) -> None:
        self._begin(self._limit_s)
        with suppress(OSError):  # the child is dead: its sentinel says so
            self._pipe.send(self._asked)

    def look(self, readable: Sequence[Any]) -> Outcome | None:
        """What became of the cell, as far as is known; StoppedError when the child does not get ready."""
        if self._pipe in readable:
            try:
                answer = self._pipe.recv()
            except (EOFError, OSError):
                answer = self._death()
        elif self._process.sentinel in readable:
            answer = self._death()
        elif not self.left_s:
            answer = Outcome("timeout", f"not finished after {self._limit_s if self._ready else START_S:g} s")
        else:
            return None
        if self._ready:
            return answer  # type: ignore[no-any-return]
        if answer != "ready":
            reason = answer.reason if isinstance(answer, Outcome) else answer
            raise StoppedError(f"the worker process cannot start: {reason}. See {self.log}")
        self._ready = True
        self._send()
        return None

    def can_go_on(self, outcome: Outcome) -> bool:
        """Whether the child can take another cell after `outcome`."""
        return outcome.status in ("ok", "unsupported", "failed") and self._process.is_alive()

    def _death(self) -> Outcome:
        """A SIGKILL that is not ours is nearly always the system's, short of memory."""
        self._process.join(10)
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return Outcome("oom", "the process was killed by SIGKILL, most likely for lack of memory")
        if code is not None and code < 0:
            return Outcome("failed", f"the process died of {signal.Signals(-code).name}; see {self.log.name}")
        return Outcome("failed", f"the process ended with exit code {code}; see {self.log.name}")

    def kill(self) -> None:
        """Kill the child and all that it started, without waiting for its end."""
        if self._process.pid is not None and self._process.is_alive():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()

    def stop(self) -> None:
        """Kill the child and wait until it is gone."""
        self.kill()
        self._process.join(10)
        self._pipe.close()
