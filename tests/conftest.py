"""Modules of tests that need a library which is not installed are skipped, with the reason, and break nothing else.

So the tests of a machine with a GPU, where not everything can be installed, are those of the kernels at least.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

OPTIONAL = (
    "bitsandbytes",
    "hypothesis",
    "importlinter",
    "jinja2",
    "kmeans1d",
    "matplotlib",
    "numba",
    "pandas",
    "peft",
    "psutil",
    "pytest_benchmark",
    "rich",
    "scipy",
    "seaborn",
    "tabulate",
)


class Module(pytest.Module):
    """A module of tests."""

    def _getobj(self) -> Any:
        try:
            return super()._getobj()
        except self.CollectError as error:
            missing = error.__cause__
            name = (missing.name or "").partition(".")[0] if isinstance(missing, ModuleNotFoundError) else ""
            if name not in OPTIONAL or importlib.util.find_spec(name) is not None:
                raise
            pytest.skip(f"needs {name}, which is not installed", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    module: pytest.Module = Module.from_parent(parent, path=module_path)
    return module
