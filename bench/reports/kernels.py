"""The report of the kernel benchmark: tables, plots and a page from the records of a folder.

Equal records give equal bytes. Without matplotlib or seaborn the tables come all the same, and the page says so.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.gpu.store import KERNELS, STAGES, TRAINING, counted, read_lines
from bench.reports.escape import csv_text, plot_text
from bench.reports.kernel_frames import caption_of, mark_of
from bench.reports.table import Table, markdown_text_long
from bench.reports.tables.kernels import kernel_tables

__all__ = ["markdown", "write"]

PLOTS = {"kernel-speedups": "speedups", "kernel-roofline": "roofline"}
FORMATS = ("md", "csv", "tex")


def load(folder: Path) -> list[dict[str, Any]]:
    """The records that count. UsageError when there are none, or a line is none."""
    records: list[dict[str, Any]] = []
    for name in (KERNELS, TRAINING, STAGES):
        good, bad = read_lines(folder / name)
        if bad:
            raise UsageError(f"{bad[0]}. Take the line out of the file: the others are good")
        records += good
    if not records:
        raise UsageError(
            f"no {KERNELS}, {TRAINING} or {STAGES} with records in {folder}: run `make gpu` or `make bench-kernels`"
        )
    return counted(records)


def write(folder: Path) -> list[Path]:
    """Write tables/, plots/ and REPORT.md below `folder`; the paths, the page last."""
    records = load(folder)
    made = kernel_tables(records)
    (folder / "tables").mkdir(exist_ok=True)
    written: list[Path] = []
    for table in made:
        for ending, text in zip(FORMATS, (table.markdown_page(), table.csv(), table.latex()), strict=True):
            path = folder / "tables" / f"{table.name}.{ending}"
            path.write_text(text, encoding="utf-8")
            written.append(path)
    lacking = [name for name in ("matplotlib", "seaborn") if importlib.util.find_spec(name) is None]
    figures = [] if lacking else draw(folder / "plots", records)
    note = f"Plots left out: {', '.join(lacking)} not installed." if lacking else ""
    page = folder / "REPORT.md"
    page.write_text(markdown(records, made, [p.stem for p in figures if p.suffix == ".png"], note), encoding="utf-8")
    return [*written, *figures, page]


def draw(out: Path, records: list[dict[str, Any]]) -> list[Path]:
    """Every plot that has something to show, as PNG, SVG and CSV."""
    from bench.reports import style
    from bench.reports.plots import kernels as plots

    out.mkdir(exist_ok=True)
    written: list[Path] = []
    for name, function in PLOTS.items():
        with style.style():
            drawn = getattr(plots, function)(records)
            if drawn is None:
                continue
            style.finish(drawn.figure, plot_text(drawn.title, 70), plot_text(drawn.footer, 300), mark_of(records))
            written += style.save(drawn.figure, out / name)
        path = out / f"{name}.csv"
        data = drawn.data.map(lambda v: csv_text(v) if isinstance(v, str) else v)
        path.write_text(data.to_csv(index=False, lineterminator="\n"), encoding="utf-8")
        written.append(path)
    return written


def markdown(records: list[dict[str, Any]], made: list[Table], figures: list[str], note: str = "") -> str:
    """The page: what was measured where, targets and training first, then figures, then the other tables."""
    mark = mark_of(records)
    warning = f"**{mark}**: not for publication." if mark else ""
    first = [t for t in made if t.name in ("kernel-targets", "kernel-speedups", "training-steps")]
    parts = ["# Kernels and training steps", markdown_text_long(caption_of(records)), warning, note]
    for table in first:
        parts += [f"## {table.title}", table.markdown(), *(markdown_text_long(text) for text in table.notes)]
    parts += [f"![{name}](plots/{name}.png)" for name in figures]
    links = [f"- [{t.title}](tables/{t.name}.md) ([CSV](tables/{t.name}.csv))" for t in made]
    return "\n\n".join(part for part in [*parts, "## All tables", "\n".join(links)] if part) + "\n"
