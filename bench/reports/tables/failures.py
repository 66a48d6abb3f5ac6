"""`failures`: every cell that did not finish, with its status and reason."""

from __future__ import annotations

import pandas as pd

from bench.reports.caption import caption
from bench.reports.frames import CELL, Run, cell_of
from bench.reports.table import Column, Table, table


@table("failures")
def failures(run: Run) -> list[Table]:
    """Always there, so that an empty one can be seen to be empty."""
    if not run.records:
        return []
    names = (*CELL, "status", "reason")
    rows = [
        (*cell_of(r), str(r.get("status") or "unknown"), str(r.get("reason") or ""))
        for r in run.records
        if r.get("status") != "ok"
    ]
    frame = pd.DataFrame(rows, columns=list(names), dtype=object)
    columns = tuple(Column(n, n, text=True, keep=9 if n in ("method", "status", "reason") else 5) for n in names)
    note = f"{len(run.records) - len(rows)} of {len(run.records)} cells finished."
    return [Table("failures", "Cells that did not finish", columns, frame, caption(run, ()), (note,))]
