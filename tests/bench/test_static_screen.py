"""What the static gate prints: the same with rich and without it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from bench.static.screen import Screen

ROOT = Path(__file__).resolve().parents[2]
HEADINGS = ("verdict", "kernel", "what changed")
ROWS = [("WORSE", "small/[m16]/c0", "2 spills"), ("OK", "gemv", "")]


@pytest.mark.parametrize("rich", [True, False])
def test_a_table_holds_every_word_and_is_aligned(rich: bool) -> None:
    file = io.StringIO()
    screen = Screen(file)
    screen.rich = screen.rich and rich
    screen.table(HEADINGS, ROWS, "the title", {"WORSE": "red"})
    text = file.getvalue()
    for word in ("the title", *HEADINGS, *(cell for row in ROWS for cell in row)):
        assert word in text
    first, second = (next(line for line in text.splitlines() if name in line) for name in ("small", "gemv"))
    assert first.index("small") == second.index("gemv")
    assert "\x1b" not in text


def test_the_gate_runs_where_rich_is_not_installed() -> None:
    code = "import sys; sys.modules['rich'] = None; from bench.static.__main__ import main; "
    code += "raise SystemExit(main(['--only', 'no_such_operation', '--workers', '0']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout) == (2, "error: no kernel matches 'no_such_operation'\n"), done.stderr
