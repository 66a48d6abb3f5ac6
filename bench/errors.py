"""The errors that end a command: one line for the reader, an exit code for the script.

Exit codes: 0 done, 1 a cell failed or the results could not be written, 2 a mistake in the command or a file,
4 this machine or moment cannot do it, 130 interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["BenchError", "CannotRunError", "StoppedError", "UsageError", "suggestion", "unknown"]


class BenchError(Exception):
    """An error whose text is meant for the reader; `bench` prints it as `error: ...` without a traceback."""

    exit_code = 1


class UsageError(BenchError):
    """A mistake in the command line, an experiment file, or the choice of what to compare."""

    exit_code = 2


class CannotRunError(BenchError):
    """The command is right, but not here or not now: another run holds the folder, a device is missing."""

    exit_code = 4


class StoppedError(BenchError):
    """The run had to stop before its end; what is finished is saved."""

    exit_code = 1


def suggestion(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'nf4'?" for the nearest known name, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown(noun: str, name: str, known: Iterable[str], *, where: str = "", listing: str = "") -> UsageError:
    """The error for a name that is not in `known`: what, where, the nearest name, and where all of them are listed."""
    names = list(known)
    text = f"{where}unknown {noun} {name!r}"
    if name != name.strip():
        text += " (stray blank?)"
    text += "."
    text += suggestion(name, names)
    if listing:
        return UsageError(f"{text} See all {len(names)}: {listing}")
    return UsageError(f"{text} Known: {', '.join(names)}")
