"""sha256 of files, remembered by (path, size, time of change) so that a second call reads nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

__all__ = ["digest_of", "file_digest"]


def file_digest(path: Path) -> str:
    """sha256 (hex) of the bytes of `path`; read again only when its size or its time of change has moved."""
    stat = path.stat()
    return _digest(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(files: Iterable[Path], recipe: str = "") -> str:
    """sha256 (hex) of the names and bytes of `files`, in order of name, and of `recipe`."""
    total = hashlib.sha256(recipe.encode())
    for path in sorted(files, key=lambda p: p.name):
        total.update(f"{path.name}\0{file_digest(path)}\0".encode())
    return total.hexdigest()
