"""The gate's answer on the terminal: what is red, what changed, and how many cases are as they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.static.compare import Row
from bench.static.screen import Screen

__all__ = ["print_rows", "summary"]

ORDER = ("BROKEN", "WORSE", "NEW", "GONE", "BETTER", "OK")
COLOURS = {"BROKEN": "red", "WORSE": "red", "BETTER": "green"}


def print_rows(screen: Screen, rows: Sequence[Row], *, quiet: Sequence[str] = ("OK",)) -> None:
    """A line for each row whose verdict is not in `quiet`, the red ones first; targets of one change share a line."""
    shared: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for row in rows:
        if row.verdict not in quiet:
            shared.setdefault((row.verdict, row.case, row.changes), []).append(row.target)
    if not shared:
        return
    lines = [
        (verdict, case, " ".join(targets), "; ".join(changes))
        for (verdict, case, changes), targets in sorted(shared.items(), key=lambda item: ORDER.index(item[0][0]))
    ]
    screen.table(("verdict", "kernel", "targets", "what changed"), lines, colours=COLOURS)


def summary(rows: Sequence[Row]) -> str:
    """Such as `120 kernels: 1 WORSE, 119 OK`."""
    counts = Counter(row.verdict for row in rows)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ORDER if counts[verdict])
    return f"{len(rows)} compiled kernels: {said or 'none'}"
