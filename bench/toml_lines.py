"""On which line of a TOML file a key stands; `tomllib` tells the values but not their places.

The scanner knows just enough of TOML 1.0 (strings, comments, brackets, table headers) to find keys; it runs on text
that `tomllib` has already accepted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

__all__ = ["Path", "element_line", "key_lines", "line_of"]

Path = tuple[str | int, ...]

_HEADER = re.compile(r"\s*(\[\[?)([^\]]*)\]")
_KEY = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[\w-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[\w-]+))*)\s*=""")
_WORD = re.compile(r"""\s*("[^"]*"|'[^']*'|[^.\s]+)\s*\.?""")
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""|' + r"'''.*?'''|" + r'"(?:\\.|[^"\\\n])*"|' + r"'[^'\n]*'|#[^\n]*|[\[\]{}\n]", re.DOTALL
)


def key_lines(text: str) -> dict[Path, int]:
    """The line, from 1, of every table header and key outside inline tables: ("grid", 0, "models") -> 14."""
    lines: dict[Path, int] = {}
    arrays: Counter[Path] = Counter()
    table: Path = ()
    for number, statement in _statements(text):
        if header := _HEADER.match(statement):
            table = _resolve(_words(header[2]), arrays)
            if header[1] == "[[":
                arrays[table] += 1
                table = (*table, arrays[table] - 1)
            lines.setdefault(table, number)
        elif key := _KEY.match(statement):
            words = _words(key[1])
            for end in range(1, len(words) + 1):
                lines.setdefault((*table, *words[:end]), number)
    return lines


def line_of(lines: dict[Path, int], path: Path) -> int:
    """The line of `path`, or of the nearest thing around it (a key of an inline table: the table's line)."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def element_line(text: str, start: int, value: str) -> int:
    """The line at or after `start` on which the string `value` is written; `start` when it cannot be found."""
    for number, line in enumerate(text.splitlines()[start - 1 :], start=start):
        if f'"{value}"' in line or f"'{value}'" in line:
            return number
    return start


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Header and key lines: each line that does not begin inside a string or a bracket, with its number."""
    depth, begin, number = 0, 0, 1
    text += "\n"
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark == "\n":
            if depth == 0:
                yield number, text[begin : token.start()]
                begin, number = token.end(), text.count("\n", 0, token.end()) + 1
        elif mark in "[{":
            depth += 1
        elif mark in "]}":
            depth -= 1


def _words(key: str) -> Path:
    return tuple(word.strip("\"'") for word in _WORD.findall(key))


def _resolve(words: Path, arrays: Counter[Path]) -> Path:
    """[grid.more] under [[grid]] belongs to the last of its tables."""
    out: Path = ()
    for word in words[:-1]:
        out = (*out, word)
        if arrays[out]:
            out = (*out, arrays[out] - 1)
    return (*out, *words[-1:])
