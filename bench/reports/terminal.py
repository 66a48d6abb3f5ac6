"""The main tables for a terminal of a given width: columns go in their declared order until the rest fits."""

from __future__ import annotations

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from bench.reports.caption import watermark
from bench.reports.escape import plain
from bench.reports.frames import Run
from bench.reports.table import Column, Table

__all__ = ["fit", "main_tables", "render"]

LONGEST = 40  # characters of a cell
PADDING = 2  # spaces between columns


def fit(made: Table, width: int) -> tuple[tuple[Column, ...], tuple[Column, ...]]:
    """(shown, dropped): columns with the smallest `keep` go first, later ones before earlier; 9 stays always."""
    shown = list(made.used())
    needed = {c.key: needed_width(c, made) for c in shown}
    dropped: list[Column] = []
    while sum(needed[c.key] + PADDING for c in shown) > width:
        movable = [c for c in shown if c.keep < 9]
        if not movable:
            break
        out = min(reversed(movable), key=lambda c: c.keep)
        shown.remove(out)
        dropped.append(out)
    return tuple(shown), tuple(dropped)


def needed_width(column: Column, made: Table) -> int:
    """Characters of the longest cell and of the longest word of the heading."""
    words = (cell_len(word) for word in column.heading.split())
    return max([*words, *(cell_len(plain(column.show(row), LONGEST)) for row in made.rows)])


def render(made: Table, width: int, mark: str = "") -> RenderableType:
    """One table with its notes below; headings wrap, cells do not."""
    shown, dropped = fit(made, width)
    title = Text(f"{mark} {made.title}".strip(), style="bold")
    grid = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in shown:
        wide = needed_width(column, made)
        grid.add_column(Text(column.heading), justify="left" if column.text else "right", width=wide)
    for row in made.rows:
        grid.add_row(*(Text(plain(c.show(row), LONGEST), no_wrap=True, overflow="ellipsis") for c in shown))
    notes = [plain(made.caption, 1000), *(plain(note, 1000) for note in made.notes)]
    if dropped:
        names = ", ".join(c.heading for c in dropped)
        notes.append(f"{len(dropped)} columns do not fit in {width} characters: {names}.")
    return Group(grid, *(Text(note, style="dim") for note in notes if note))


def main_tables(run: Run, tables: list[Table], width: int) -> RenderableType:
    """The tables one below the other, or a line that says why there is none."""
    if not tables:
        done = sum(r.get("status") == "ok" for r in run.records)
        return Text(f"No table yet: {done} of {len(run.records)} cells finished, none of them beneath an adapter.")
    return Group(*(render(made, width, watermark(run)) for made in tables))
