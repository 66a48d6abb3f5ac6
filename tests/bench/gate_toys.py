"""A machine made of random numbers for the gate, and small trees of `kernels` and `quant`."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from bench.gate.trees import Tree


class Machine:
    """A stopwatch over calls that return their true seconds, disturbed as real ones are.

    `noise` of each reading and `placement` of each allocation are standard deviations of log-seconds. The clock of the
    processor wanders by 5 % over some hundred readings; one reading in 50 is an outlier of up to five times; a burst of
    readings is half as slow again; a call right after itself is 2 % faster.
    """

    what = "simulated seconds"

    def __init__(self, seed: int, noise: float = 0.02, placement: float = 0.01) -> None:
        self.rng = np.random.default_rng([seed, 77])
        self.noise, self.placement = noise, placement
        self.count = self.burst = 0
        self.phase = float(self.rng.uniform(0, 2 * math.pi))
        self.before: object = None

    def maker(self, seconds: float) -> Callable[[Generator], Callable[[], float]]:
        """Allocates: each call has its own place, and with it its own speed."""

        def make(_: Generator) -> Callable[[], float]:
            placed = seconds * math.exp(self.placement * self.rng.standard_normal())
            return lambda: placed

        return make

    def makers(self, ratio: float, again: float = 1.0) -> dict[str, Any]:
        return {"reference": self.maker(0.02), "again": self.maker(0.02 * again), "new": self.maker(0.02 * ratio)}

    def __call__(self, call: Callable[[], float], runs: int = 1) -> float:
        self.count += 1
        factor = math.exp(self.noise * self.rng.standard_normal() + 0.05 * math.sin(self.phase + self.count / 150))
        if self.rng.random() < 0.02:
            factor *= self.rng.uniform(1, 5)
        if self.rng.random() < 0.005:
            self.burst = 12
        if self.burst:
            self.burst -= 1
            factor *= 1.5
        if call is self.before:
            factor *= 0.98
        self.before = call
        return call() * factor

    def runs(self, once: float) -> int:
        return 1

    def elsewhere(self) -> float:
        return 0.0


def write_tree(folder: Path, files: Mapping[str, str]) -> Tree:
    """A tree of these files, with the two packages where they are not given."""
    for name, text in {"kernels/__init__.py": "", "quant/__init__.py": "", **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Tree(folder, folder.name)


def commit_all(folder: Path) -> None:
    """A repository of `folder` whose HEAD is what lies there."""
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)
