"""The records of a results folder: one JSON line a cell in `records.jsonl`, append-only, safe against any interruption.

A record is one `os.write` of a whole line to a file opened for appending, its return value checked, then `fsync`. A
writer holds the folder's lock and, on opening, mends a torn last line (it would swallow the next record) and moves
lines that cannot be read to `records.jsonl.bad`, so that their cells run again. The reader refuses what JSON leaves
open: duplicate keys, NaN and infinities.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bench.errors import CannotRunError, StoppedError, UsageError
from bench.schema import ORDERS, SCHEMA, STATUSES, Cell

__all__ = ["FILE", "BadLine", "Record", "Store", "cell_of", "current", "latest", "parse", "read", "to_line", "torn"]

FILE = "records.jsonl"
UNFINISHED = ("interrupted", "skipped")  # statuses that say nothing of the cell itself
Record = dict[str, Any]


@dataclass(frozen=True)
class BadLine:
    """A line that is not a record: its number from 1, its bytes, and what is wrong with it."""

    number: int
    text: bytes
    why: str


def to_line(record: Record) -> bytes:
    """`record` as one line of strict JSON; ValueError for NaN and infinities."""
    return json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def parse(line: bytes) -> Record:
    """The record on `line`; ValueError says what is wrong, UsageError when a newer version wrote it."""
    try:
        record = json.loads(line, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON at column {error.colno}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"invalid JSON ({type(error).__name__})") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    schema = record.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ValueError(f"schema is {schema!r}, not a version number")
    if schema > SCHEMA:
        raise UsageError(f"has schema {schema}, this version reads <= {SCHEMA}: upgrade")
    if not isinstance(record.get("key"), str):
        raise ValueError("key is missing")
    if record.get("status") not in STATUSES:
        raise ValueError(f"status is {record.get('status')!r}, not one of {', '.join(STATUSES)}")
    cell_of(record)
    return record


def cell_of(record: Record) -> Cell:
    """The cell that `record` is of; ValueError when it is not one."""
    cell = record.get("cell")
    texts = ("model", "task", "order", "method")
    if not isinstance(cell, dict) or set(cell) != {*texts, "seed"}:
        raise ValueError("cell must hold model, task, order, method and seed")
    if not all(isinstance(cell[name], str) for name in texts) or type(cell["seed"]) is not int:
        raise ValueError("cell must hold four names and a whole number for the seed")
    if cell["order"] not in ORDERS:
        raise ValueError(f"cell names the unknown order {cell['order']!r}")
    return Cell(**cell)


def read(path: Path) -> tuple[list[Record], list[BadLine]]:
    """Every record of the file at `path`, and every line that is none; a file that is not there holds none.

    An unfinished last line is not reported as bad: another run may be writing it. UsageError for a newer schema.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    records: list[Record] = []
    bad: list[BadLine] = []
    *lines, _unfinished = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse(line))
        except UsageError as error:
            raise UsageError(f"{path}:{number} {error}") from None
        except ValueError as error:
            bad.append(BadLine(number, line, str(error)))
    return records, bad


def torn(path: Path) -> BadLine | None:
    """The last line of `path` when it has no end: it was cut off, or another run is writing it. None otherwise."""
    data = path.read_bytes() if path.is_file() else b""
    tail = data[data.rfind(b"\n") + 1 :]
    return BadLine(data.count(b"\n") + 1, tail, "the line has no end") if tail else None


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """By key, the record that counts: the last one, but no attempt of `UNFINISHED` displaces one that is ok.

    An ok cell runs again only when that is asked for. If it then comes to another end, that is what the folder says:
    an older figure that could not be had again is not shown as if it had been. After a cut-off attempt it still serves.
    """
    out: dict[str, Record] = {}
    for record in records:
        before = out.get(record["key"])
        if before is None or before["status"] != "ok" or record["status"] not in UNFINISHED:
            out[record["key"]] = record
    return out


def current(records: Sequence[Record]) -> list[Record]:
    """One record a cell: that of the key under which the cell ran last, in the order of first appearance."""
    by_key = latest(records)
    keys = {cell_of(record): record["key"] for record in records}
    return [by_key[key] for key in dict.fromkeys(keys.values())]


class Store:
    """The results folder `folder`, opened by the one run that may write to it.

    Raises CannotRunError (exit 4) when another run holds it, StoppedError when it cannot be written. `messages` says
    what had to be mended; `records` are those on file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE
        self.written = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoppedError(
                f"cannot write to {folder}: {error.strerror}. Choose another folder with --out"
            ) from None
        try:
            self._take_lock()
            self.messages: list[str] = []
            self.records = self._mend()
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            os.close(self._lock)
            raise StoppedError(
                f"cannot write {self.path}: {error.strerror}. Choose another folder with --out"
            ) from None
        except BaseException:
            os.close(self._lock)
            raise

    def append(self, record: Record) -> None:
        """Write `record` for good. StoppedError when the disk is full: the half-written line is taken back."""
        line = to_line(record)
        start = os.fstat(self._fd).st_size
        why = os.strerror(errno.ENOSPC)
        try:
            whole = os.write(self._fd, line) == len(line)
            os.fsync(self._fd)
        except OSError as error:
            whole, why = False, error.strerror or str(error)
        if not whole:
            os.ftruncate(self._fd, start)
            safe = len({r["key"] for r in self.records if r["status"] == "ok"})
            raise StoppedError(f"cannot write {self.path} ({why}); {safe} finished cells are safe")
        self.records.append(record)
        self.written += 1

    def close(self) -> None:
        """Give the folder back."""
        os.close(self._fd)
        os.close(self._lock)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_lock(self) -> None:
        """The lock is the kernel's and dies with its holder; the pid in the file is only for the message."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise CannotRunError(
                f"{self.folder} is in use by another run (pid {holder}). Wait for it, or choose another with --out"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _mend(self) -> list[Record]:
        """Mend the last line, set bad lines aside, and return the records."""
        records, bad = read(self.path)
        data = self.path.read_bytes() if self.path.exists() else b""
        tail = data[data.rfind(b"\n") + 1 :]
        number = data.count(b"\n") + 1
        keep_tail = False
        if tail:
            try:
                records.append(parse(tail))
                keep_tail = True
            except UsageError as error:
                raise UsageError(f"{self.path}:{number} {error}") from None
            except ValueError as error:
                bad.append(BadLine(number, tail, f"{error} (partial line, likely an interrupted write)"))
        if bad or keep_tail:
            self._set_aside(data, bad)
        for line in bad:
            self.messages.append(f"{self.path}:{line.number}: {line.why}. Moved to {FILE}.bad; its cell runs again")
        return records

    def _set_aside(self, data: bytes, bad: Sequence[BadLine]) -> None:
        """First the bad lines are safe in their own file, then the records are replaced in one step."""
        numbers = {line.number for line in bad}
        good = [line for number, line in enumerate(data.split(b"\n"), start=1) if number not in numbers and line]
        if bad:
            with open(f"{self.path}.bad", "ab") as file:
                file.write(b"".join(line.text + b"\n" for line in bad))
                file.flush()
                os.fsync(file.fileno())
        mended = self.path.with_suffix(".tmp")
        with open(mended, "wb") as file:
            file.write(b"".join(line + b"\n" for line in good))
            file.flush()
            os.fsync(file.fileno())
        os.replace(mended, self.path)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(n for n in names if names.count(n) > 1)!r}")
    return out


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) < float("inf") else _no_constant(text)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
