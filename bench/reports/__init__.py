"""Tables, plots and a front page from records: `write` for files, `terminal_table` for the screen.

A table is a file in `tables/`, a plot a file in `plots/`; each registers itself. Equal records give equal bytes. The
side files `rates.jsonl` and `sensitivity.jsonl`, where they are, add theirs.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import RenderableType

from bench.reports import tables as _tables  # noqa: F401
from bench.reports.frames import Record, Run
from bench.reports.rates import write as write_rates
from bench.reports.table import TABLES, write_tables
from bench.reports.terminal import main_tables

__all__ = ["terminal_table", "write"]


def write(out: Path, records: list[Record], *, plots: bool = True) -> list[Path]:
    """Write `out`/tables, `out`/plots and the front page `out`/README.md; the paths written, front page last.

    Raises OSError where `out` cannot be written.
    """
    from bench.reports.page import write_page

    run = Run(records)
    written = write_tables(out / "tables", run) + write_rates(out)
    if plots:
        from bench.reports.plots import write_plots  # matplotlib takes a second to import
        from bench.reports.sensitivity import write as write_sensitivity

        written += write_plots(out / "plots", run) + write_sensitivity(out)
    return [*written, write_page(out, run, written)]


def terminal_table(records: list[Record], width: int) -> RenderableType:
    """The main tables, as many columns of them as fit in `width` characters."""
    run = Run(records)
    made = [t for name in ("methods-encoder", "methods-causal") for t in TABLES[name](run)]
    return main_tables(run, made, width)
