"""Records of a side file, one JSON line each: reading them, and mending what an interruption left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["mend", "read_lines"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records in `path`, none where there is no such file; a last line cut short by an interruption is left out.

    Raises ValueError naming any other line that is no record.
    """
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: no record ({error}); remove it and measure again") from None
    return found


def mend(path: Path) -> None:
    """Make the folder of `path`, and cut a last line that has no end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (text := path.read_text(encoding="utf-8")).endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
