"""A plugin of pytest: one of several processes that take tests from one list, each outcome noted as it comes.

Every process collects the same list, the most telling tests first, and runs the next one that no other has taken: a
test that takes long holds up no other. `SHARD_TAKEN` in the environment is the folder where they mark what is taken,
`SHARD_NOTES` the file that takes a line of JSON for each test begun and each outcome, `SHARD` this process's name.
Tests marked `alone` time something, so they are left out, or with `SHARD_ALONE=1` are all that is run. After a test
that took the device away the process ends with `LOST`: nothing that it would still say could be trusted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

from bench.gpu.stages import LOST
from bench.gpu.suite import COLLECTED

__all__ = ["pytest_collection_modifyitems", "pytest_runtestloop", "urgency"]

OTHER_DTYPES = re.compile(r"(?<!b)float16|float32")
LATER = re.compile(r"(?<!de)quantize|tests/bench/")
LONG = re.compile(r"compiled|every_configuration")
FAILED_CHARACTERS = 4000
KEPT_BYTES = 4 << 30


def urgency(test: str) -> tuple[bool, bool, bool]:
    """What tests are ordered by: bfloat16 or no dtype first, products before quantizers, what takes long first."""
    return bool(OTHER_DTYPES.search(test)), bool(LATER.search(test)), not LONG.search(test)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: times something on the device, so nothing else may run there")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order what the other options have left, and write down what it is."""
    alone = os.environ.get("SHARD_ALONE") == "1"
    items[:] = [item for item in items if (item.get_closest_marker("alone") is not None) == alone]
    items.sort(key=lambda item: urgency(item.nodeid))
    if taken(COLLECTED):
        written = Path(os.environ["SHARD_TAKEN"]) / f"{COLLECTED}.{os.getpid()}"
        written.write_text(json.dumps([item.nodeid for item in items]), encoding="utf-8")
        written.replace(written.with_name(COLLECTED))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be read is a failure, one that needs what is not installed is skipped: once for all."""
    if report.outcome != "passed" and taken(report.nodeid):
        note(test=report.nodeid, outcome=report.outcome, **_text(report))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """Run what nobody has taken yet; each test with set-up and end of its own."""
    for item in session.items:
        if not taken(item.nodeid):
            continue
        note(begun=item.nodeid)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        if why := _lost():
            note(lost=item.nodeid, reason=why)
            sys.stdout.flush()
            os._exit(LOST)  # what the device does at a regular end of the process, nobody knows
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome of a test: of its call, or of the set-up or the end where they did not pass."""
    if report.when == "call" or report.outcome != "passed":
        note(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 3), **_text(report))


def _lost() -> str:
    """Why the device does not answer any more, else nothing; much memory is given back to it for the others."""
    if "torch" not in sys.modules:  # no test has needed it, and it takes long to import
        return ""
    import torch

    from bench.gpu.timing import lost

    why = lost()
    if not why and torch.cuda.memory_reserved() > KEPT_BYTES:
        torch.cuda.empty_cache()
    return why


def taken(name: str) -> bool:
    """Whether this process is the one that takes what is called so."""
    mark = Path(os.environ["SHARD_TAKEN"]) / hashlib.sha256(name.encode()).hexdigest()[:32]
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def note(**what: object) -> None:
    """A line for the file of notes, in one write: all processes append to it."""
    line = json.dumps({"process": os.environ["SHARD"], **what}) + "\n"
    handle = os.open(os.environ["SHARD_NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def _text(report: pytest.TestReport | pytest.CollectReport) -> dict[str, str]:
    """Why it failed or was skipped in a line, and what pytest prints of a failure."""
    text = str(getattr(report, "longreprtext", "")).strip()
    lines = text.splitlines()
    if report.outcome == "passed":
        return {}
    if report.outcome == "skipped":
        return {"reason": (lines or [""])[-1][:300]}
    wrong = [line[2:].strip() for line in lines if line.startswith("E ")]
    return {"reason": (wrong or lines or [""])[0][:300], "text": text[-FAILED_CHARACTERS:]}
