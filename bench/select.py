"""Patterns that choose names: 'nf4*,uniform-int4*,-*-g32'.

Comma-separated shell patterns (`fnmatch`, case matters). A leading '-' takes names out again; patterns apply from left
to right, and a list that begins with '-' begins from everything. The result keeps the order of the known names. Other
libraries' methods, "peer-...", and the controls beside them, "control-...", are chosen only by patterns that begin so:
what is installed does not change a suite.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from bench.errors import UsageError

__all__ = ["matches", "seeds", "select", "split"]

APART = ("peer-", "control-")
FEW = 12  # so many names an error can list


def split(text: str) -> tuple[str, ...]:
    """The patterns of one command-line value; UsageError when there are none."""
    patterns = tuple(part.strip() for part in text.split(",") if part.strip())
    if not patterns:
        raise UsageError(f"{text!r} holds no pattern")
    return patterns


def select(option: str, patterns: Sequence[str], known: Iterable[str], noun: str) -> list[str]:
    """The names of `known` that `patterns` choose; a pattern that matches nothing is an error that names `option`.

    `option` is what the reader typed, such as "--methods" or "suite.toml:14: methods"; `noun` is the plural.
    """
    names = list(dict.fromkeys(known))
    everything = {name for name in names if not name.startswith(APART)}
    chosen: set[str] = everything if patterns and patterns[0].startswith("-") else set()
    for pattern in patterns:
        wanted = pattern.removeprefix("-")
        hits = {name for name in names if _fits(name, wanted)}
        if not hits:
            raise UsageError(
                f"{option} {pattern!r} matched 0 of {len(names)} {noun}.{_nearest(wanted, names) or _all(names, noun)}"
            )
        chosen = chosen - hits if pattern.startswith("-") else chosen | hits
    if not chosen:
        raise UsageError(f"{option} {','.join(patterns)!r} takes out every one of {len(names)} {noun}")
    return [name for name in names if name in chosen]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether `patterns` choose `name`, without the check that each pattern is of use."""
    chosen = bool(patterns) and patterns[0].startswith("-") and not name.startswith(APART)
    for pattern in patterns:
        if _fits(name, pattern.removeprefix("-")):
            chosen = not pattern.startswith("-")
    return chosen


def _fits(name: str, pattern: str) -> bool:
    """Whether `pattern` matches `name`; the name of a peer or a control only where the pattern begins so."""
    return fnmatchcase(name, pattern) and (pattern.startswith(APART) or not name.startswith(APART))


def seeds(text: str) -> tuple[int, ...]:
    """'0,1,2' as integers; UsageError otherwise."""
    parts = split(text)
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise UsageError(f"--seeds {text!r} must be whole numbers from 0, joined by commas, as in 0,1,2")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _all(names: Sequence[str], noun: str) -> str:
    return f" Known: {', '.join(names)}" if len(names) <= FEW else f" See them all: bench list {noun}"


def _nearest(pattern: str, names: Sequence[str]) -> str:
    """A hint: the pattern with its fixed beginning mended, when that would match something."""
    head = pattern.split("*")[0].split("?")[0].split("[")[0]
    if not head:
        return ""
    starts = dict.fromkeys(start for name in names for start in _starts(name))
    for close in difflib.get_close_matches(head, list(starts), n=3, cutoff=0.6):
        mended = close + pattern[len(head) :]
        if any(fnmatchcase(name, mended) for name in names):
            return f" Did you mean {mended!r}?"
    return ""


def _starts(name: str) -> list[str]:
    """Beginnings of a name at its hyphens: 'a-b-c' gives 'a', 'a-', 'a-b', 'a-b-', 'a-b-c'."""
    words = name.split("-")
    out = []
    for i in range(1, len(words) + 1):
        start = "-".join(words[:i])
        out += [start, start + "-"] if i < len(words) else [start]
    return out
