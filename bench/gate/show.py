"""The gate's table and its last line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tabulate import tabulate

from bench.gate.compare import VERDICTS, Row
from bench.gate.verdict import Rule

__all__ = ["last_line", "table"]

HEADINGS = ("verdict", "case", "new / old time", "old / old", "blocks", "")


def table(rows: Sequence[Row]) -> str:
    """One line a case, what needs attention first."""
    order = list(VERDICTS)
    cells = []
    for row in sorted(rows, key=lambda r: order.index(r.verdict)):
        found = row.found
        figures = (str(found.change), str(found.control), str(found.blocks)) if found else ("", "", "")
        cells.append((row.verdict, row.name, *figures, row.reason))
    text: str = tabulate(cells, HEADINGS, tablefmt="simple", disable_numparse=True)
    return text


def last_line(rows: Sequence[Row], rule: Rule) -> str:
    """The count of each verdict, the gate's own verdict, and what to do where it is undecided."""
    counts = Counter(row.verdict for row in rows)
    text = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])
    if counts["SLOW"] or counts["REMOVED"]:
        return f"SLOW: {text} (margin {rule.margin:.1%})"
    if counts["INCONCLUSIVE"] or counts["CHANGED"]:
        advice = "run again on a quieter machine, or with a larger --margin"
        return f"INCONCLUSIVE: {text} (margin {rule.margin:.1%}); {advice}"
    return f"OK: {text} (margin {rule.margin:.1%})"
