"""A plugin of pytest: one of several processes that share the tests out, each outcome noted as it comes.

`SHARD` in the environment is "i/n", `SHARD_FILE` the file that takes a line of JSON for each outcome. Test number j
goes to process j modulo n, so that the examples of one kernel are spread over all of them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

__all__ = ["note", "pytest_collection_modifyitems", "pytest_runtest_logreport"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep this process's share of what the other options have left."""
    i, n = (int(part) for part in os.environ["SHARD"].split("/"))
    mine = items[i::n]
    kept = set(mine)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = mine
    note({"collected": len(mine)})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome of a test: of its call, or of the set-up or the end where they did not pass."""
    if report.when == "call" or report.outcome != "passed":
        text = str(getattr(report, "longreprtext", "")).strip().splitlines()
        wrong = [line[2:].strip() for line in text if line.startswith("E ")]
        reason = (wrong or text or [""])[0] if report.outcome == "failed" else (text or [""])[-1]
        note({"test": report.nodeid, "outcome": report.outcome, "reason": reason[:300]})


def note(what: dict[str, object]) -> None:
    with Path(os.environ["SHARD_FILE"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(what) + "\n")
