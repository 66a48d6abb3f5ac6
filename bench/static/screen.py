"""Lines and tables on the terminal: by rich where it is installed, else as plain text, which says the same."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import IO

__all__ = ["Screen"]

WIDE = 160


class Screen:
    """Prints to `file`, `width` characters wide (default: as wide as the terminal; 160 where there is none)."""

    def __init__(self, file: IO[str] | None = None, width: int | None = None) -> None:
        self.file = file or sys.stdout
        self.width = width or (None if self.file.isatty() else WIDE)
        self.rich = importlib.util.find_spec("rich") is not None

    def print(self, text: str) -> None:
        """A line as it is."""
        print(text, file=self.file, flush=True)

    def table(
        self,
        headings: Sequence[str],
        rows: Sequence[Sequence[str]],
        title: str = "",
        colours: Mapping[str, str] | None = None,
    ) -> None:
        """Rows of cells below their headings; `colours` are of the words in the first column."""
        if not self.rich:
            self.print(_plain(headings, rows, title))
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in headings:
            table.add_column(heading, overflow="fold")
        for first, *others in rows:
            table.add_row(Text(first, (colours or {}).get(first, "default")), *map(Text, others))
        Console(file=self.file, width=self.width, highlight=False).print(table)


def _plain(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> str:
    wide = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = ["  ".join(f"{cell:<{n}}" for cell, n in zip(row, wide, strict=True)).rstrip() for row in (headings, *rows)]
    return "\n".join([*([title] if title else []), lines[0], "-" * len(lines[0]), *lines[1:]])
