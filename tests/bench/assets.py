"""The mark of tests that read the embedded models and texts."""

from __future__ import annotations

import importlib.util

import pytest


def needs(package: str):
    """Marks a test as one of the assets and skips it where `package` is not installed."""

    def mark(test):
        absent = importlib.util.find_spec(package) is None
        skip = pytest.mark.skipif(absent, reason=f"the package {package} is not installed (make setup)")
        return pytest.mark.assets(skip(test))

    return mark
