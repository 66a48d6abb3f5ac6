"""Where a library is not installed the test modules that need it are skipped with the reason; all others are read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import OPTIONAL

ROOT = Path(__file__).resolve().parents[2]
COLLECT = """
import sys
for name in {names!r}:
    sys.modules[name] = None
import pytest
arguments = ["--collect-only", "-q", "-rs", "-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider"]
raise SystemExit(pytest.main([*arguments, "tests"]))
"""


def collected(names: tuple[str, ...]) -> str:
    """What pytest says of the tests where these libraries are not installed."""
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", COLLECT.format(names=names)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_without_optional_libraries_the_tests_can_be_read() -> None:
    said = collected(OPTIONAL)
    for name in ("scipy", "hypothesis", "rich", "psutil"):
        assert f"needs {name}, which is not installed" in said
    for file in ("kernels/test_gpu.py", "kernels/test_dispatch_gpu.py", "quant/test_triton_gpu.py"):
        assert f"tests/{file}::" in said
    assert " error" not in said
