"""A table: one frame of raw numbers, and columns that say how they are shown; every format is made from these two.

CSV holds the frame as it is (raw numbers, units in the names); Markdown, LaTeX and the terminal show the columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench.reports.escape import csv_text, markdown_text, plain, tex_text
from bench.reports.frames import Run
from bench.reports.stats import MISSING, Stat, estimate_text, number_or_none

__all__ = ["TABLES", "Column", "Table", "put", "table", "write_tables"]


@dataclass(frozen=True)
class Column:
    """How one or three columns of the frame (`key`, `key_low`, `key_high`) are shown in one.

    `scale` turns the raw number into the shown one; `signed` writes a plus, and an interval that contains
    `neutral` (0 for a difference, 1 for a ratio) is marked `≈`; a figure whose `key_disturbed` is true is marked `†`,
    which says nothing of its interval. In a narrow terminal the columns with the smallest `keep` go first; 9 stays
    always.
    """

    heading: str
    key: str
    digits: int = 3
    scale: float = 1.0
    signed: bool = False
    neutral: float | None = None
    keep: int = 5
    text: bool = False

    def show(self, row: dict[str, Any]) -> str:
        """The text of this column in one row of the frame, not yet escaped."""
        raw = row.get(self.key)
        if self.text:
            return MISSING if raw is None or raw != raw or raw == "" else str(raw)
        value, low, high = (number_or_none(row.get(self.key + end)) for end in ("", "_low", "_high"))
        neutral = 0.0 if self.signed else self.neutral
        disturbed = bool(row.get(f"{self.key}_disturbed"))
        return estimate_text(Stat(value, low, high).map(self.scale), self.digits, self.signed, neutral, disturbed)


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    columns: tuple[Column, ...]
    frame: pd.DataFrame
    caption: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def rows(self) -> list[dict[str, Any]]:
        records = self.frame.astype(object).where(self.frame.notna(), None).to_dict("records")
        return [{str(k): v for k, v in r.items()} for r in records]

    def used(self) -> tuple[Column, ...]:
        """The columns in which at least one row has something to show."""
        rows = self.rows
        return tuple(c for c in self.columns if c.keep == 9 or any(c.show(r) != MISSING for r in rows))

    def shown(self, escape: Callable[[object], str] = plain, columns: tuple[Column, ...] | None = None) -> pd.DataFrame:
        """The frame as it is read: one text column for each of `columns`, headings escaped too."""
        chosen = self.used() if columns is None else columns
        cells = [[escape(c.show(row)) for c in chosen] for row in self.rows]
        return pd.DataFrame(cells, columns=[escape(c.heading) for c in chosen])

    def csv(self) -> str:
        kept = self.frame.map(lambda v: csv_text(v) if isinstance(v, str) else v)
        return str(kept.to_csv(index=False, lineterminator="\n"))

    def markdown(self, columns: tuple[Column, ...] | None = None) -> str:
        chosen = self.used() if columns is None else columns
        shown = self.shown(markdown_text, chosen)
        align = ["left" if c.text else "right" for c in chosen]
        lines, headings = shown.to_numpy().tolist(), list(shown.columns)
        return str(tabulate(lines, headings, "pipe", disable_numparse=True, colalign=align))

    def markdown_page(self) -> str:
        lines = [f"# {markdown_text(self.title)}", markdown_text_long(self.caption), self.markdown()]
        lines += ["\n".join(f"- {markdown_text_long(note)}" for note in self.notes)] if self.notes else []
        return "\n\n".join(line for line in lines if line) + "\n"

    def latex(self) -> str:
        chosen = self.used()
        body = self.shown(tex_text, chosen).to_latex(
            index=False, escape=False, column_format="".join("l" if c.text else "r" for c in chosen)
        )
        notes = " ".join(tex_long(text) for text in (self.title + ".", self.caption, *self.notes) if text)
        return (
            "% needs \\usepackage{booktabs,graphicx,textcomp} and \\usepackage[T1]{fontenc}\n\\begin{table}\n"
            f"\\centering\n\\caption{{{notes}}}\n\\label{{tab:{self.name}}}\n"
            f"\\resizebox{{\\linewidth}}{{!}}{{%\n{body}}}\n\\end{{table}}\n"
        )


def markdown_text_long(text: str) -> str:
    """Captions are ours but quote records, so they are escaped in pieces that the limit on length does not cut."""
    return " ".join(markdown_text(word) for word in text.split(" "))


def tex_long(text: str) -> str:
    return " ".join(tex_text(word) for word in text.split(" "))


def put(row: dict[str, Any], key: str, stat: Stat) -> None:
    """Enter a figure and the ends of its interval into a row of a frame."""
    row |= {key: stat.value, f"{key}_low": stat.low, f"{key}_high": stat.high}


Maker = Callable[[Run], list[Table]]
TABLES: dict[str, Maker] = {}


def table(name: str) -> Callable[[Maker], Maker]:
    """Register the function that makes the tables called `name`; it returns none when there is nothing to show."""

    def enter(make: Maker) -> Maker:
        TABLES[name] = make
        return make

    return enter


def write_tables(out: Path, run: Run) -> list[Path]:
    """Write every registered table that has rows to `out` in every format; the paths, in order."""
    out.mkdir(parents=True, exist_ok=True)
    suffix = "-quick" if run.quick else ""
    written = []
    for name in sorted(TABLES):
        for made in TABLES[name](run):
            for ending, text in (("csv", made.csv()), ("md", made.markdown_page()), ("tex", made.latex())):
                path = out / f"{made.name}{suffix}.{ending}"
                path.write_text(text, encoding="utf-8")
                written.append(path)
    return written
