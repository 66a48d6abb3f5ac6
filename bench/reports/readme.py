"""The generated parts of a README: text between `<!-- begin:NAME -->` and `<!-- end:NAME -->`, from committed records.

Names: `main` (conclusions and the main tables, the best methods of each family and bit width), `adapting`, `figures`,
`conclusions`, `run`, `registry` (every method, from the code), and any table by its own name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.records import current, read
from bench.reports import tables as _tables  # noqa: F401
from bench.reports.conclusions import conclusions
from bench.reports.frames import Record, Run
from bench.reports.page import markdown_long, run_card
from bench.reports.table import TABLES, Table

__all__ = ["BLOCK", "filled", "load"]

BLOCK = re.compile(r"(<!-- begin:([\w-]+) -->\n)(.*?)(<!-- end:\2 -->)", re.DOTALL)
KEEP = 5  # columns below this are left to the full tables


def load(folder: Path) -> list[Record]:
    """The records that count of every *.jsonl in `folder`; FileNotFoundError when there are none."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"no *.jsonl in {folder}: give the folder of a finished run")
    records: list[Record] = []
    for path in files:
        good, bad = read(path)
        if bad:
            raise ValueError(f"{path}:{bad[0].number} is no record: {bad[0].why}")
        records += current(good)
    return records


def compact(made: Table) -> Table:
    """The important columns, and of each family and whole number of bits the first row: the best in a ranked table."""
    rows = made.rows
    ranked = {row.get("model") for row in rows if row.get("rank")}
    kept, seen = [], set()
    for i, row in enumerate(rows):
        if row.get("model") in ranked and not row.get("rank"):
            continue  # a task of this model that nothing ranks: the full tables have it
        size = row.get("bits_per_weight")
        group = (row.get("model"), row.get("task"), row.get("family"), None if size is None else int(size + 0.5))
        if group not in seen:
            seen.add(group)
            kept.append(i)
    columns = tuple(c for c in made.columns if c.keep >= KEEP)
    return replace(made, frame=made.frame.iloc[kept].reset_index(drop=True), columns=columns)


def shown(made: Table) -> str:
    return f"**{markdown_long(made.title)}.** {markdown_long(made.caption)}\n\n{made.markdown()}"


def main_block(run: Run) -> str:
    made = [compact(t) for name in ("methods-causal", "methods-encoder") for t in TABLES[name](run)]
    note = "Of each family and whole number of bits, the best method is shown; the full tables have all."
    return "\n\n".join([bullets(run), *(shown(t) for t in made), note])


def adapting_block(run: Run) -> str:
    made = TABLES["adapting"](run)
    return "\n\n".join(shown(replace(t, columns=tuple(c for c in t.columns if c.keep >= KEEP))) for t in made)


def bullets(run: Run) -> str:
    return "\n".join(f"- {markdown_long(text)}" for text in conclusions(run))


def figures_block(folder: str, names: list[str]) -> str:
    return "\n\n".join(f"![{name}]({folder}/plots/{name}.png)" for name in names)


def registry_block() -> str:
    from bench.reports.registry import methods_table  # it loads every method

    return methods_table()


def filled(text: str, records: list[Record], results: Path, readme: Path) -> str:
    """`text` with every block that has a name of ours filled; ValueError for a block of another name."""
    run = Run(records)
    folder = os.path.relpath(results, readme.parent).replace(os.sep, "/")
    names = sorted(path.stem for path in (results / "plots").glob("*.png"))
    blocks: dict[str, Callable[[], str]] = {
        "main": lambda: main_block(run),
        "adapting": lambda: adapting_block(run),
        "figures": lambda: figures_block(folder, names),
        "conclusions": lambda: bullets(run),
        "run": lambda: run_card(run),
        "registry": registry_block,
    }

    def fill(match: re.Match[str]) -> str:
        begin, name, _, end = match.groups()
        if name in blocks:
            inside = blocks[name]()
        elif name in TABLES:
            inside = "\n\n".join(shown(t) for t in TABLES[name](run))
        else:
            known = ", ".join(sorted({*blocks, *TABLES}))
            raise ValueError(f"{readme}: unknown block {name!r}; known: {known}")
        return f"{begin}{inside}\n{end}"

    return BLOCK.sub(fill, text)
