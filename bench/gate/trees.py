"""Copies of `kernels/` and `quant/`, as a commit has them or as they lie in the working tree.

What is measured is a copy, so an edit during the measurement changes nothing.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from bench.errors import CannotRunError, UsageError

__all__ = ["PACKAGES", "Tree", "at_commit", "working"]

PACKAGES = ("kernels", "quant")
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.nbi", "*.nbc")


@dataclass(frozen=True)
class Tree:
    """A folder that holds `PACKAGES`, and what to call it: a commit's short name, or "working tree"."""

    folder: Path
    label: str

    def digest(self) -> str:
        """16 hex digits over the names and bytes of its files, tables of configurations included."""
        found = hashlib.sha256()
        for path in sorted(p for name in PACKAGES for p in (self.folder / name).rglob("*") if p.is_file()):
            found.update(f"{path.relative_to(self.folder).as_posix()}\0{path.stat().st_size}\0".encode())
            found.update(path.read_bytes())
        return found.hexdigest()[:16]

    def copy(self, into: Path) -> Tree:
        """The same tree in a folder of its own: code compiled for one copy is never found by another."""
        for name in PACKAGES:
            shutil.copytree(self.folder / name, into / name, ignore=IGNORED)
        return Tree(into, self.label)


def at_commit(root: Path, ref: str, into: Path) -> Tree:
    """`PACKAGES` as commit `ref` of the repository `root` has them, written below `into`.

    Raises UsageError for a commit that is unknown or lacks a package, CannotRunError where git cannot run.
    """
    name = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if name is None:
        raise UsageError(f"unknown commit {ref!r}: git knows no such commit, branch or tag here (see `git log`)")
    commit = name.decode().strip()
    for package in PACKAGES:
        if _git(root, "cat-file", "-e", f"{commit}:./{package}/__init__.py") is None:
            raise UsageError(f"commit {ref!r} has no package {package}/: name a later one")
    packed = _git(root, "archive", "--format=tar", commit, *PACKAGES)
    if packed is None:
        raise CannotRunError(f"git cannot write out {', '.join(PACKAGES)} of commit {ref!r}")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(into, filter="data")
    return Tree(into, commit[:12])


def working(root: Path, into: Path) -> Tree:
    """`PACKAGES` as they lie below `root` now, uncommitted changes included."""
    return Tree(root, "working tree").copy(into)


def _git(root: Path, *arguments: str) -> bytes | None:
    """What git printed; None when it failed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotRunError(f"git cannot run in {root}: {error}") from error
    return done.stdout if done.returncode == 0 else None
