"""The C compiler that Triton needs where a GPU is: with it the code that launches a kernel is built, at its first run.

Triton takes the program that CC names, else gcc, else clang, and includes Python.h; it brings neither.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

__all__ = ["REMEDY", "compiler_problem"]

REMEDY = (
    "install gcc or clang with the C library's headers, and Python.h (Debian: apt install gcc libc6-dev python3-dev)"
)
PROGRAM = "#include <Python.h>\nint main(void) { return 0; }\n"


def compiler_problem() -> tuple[str, str]:
    """(the compiler or an empty string, what is wrong with it or an empty string), by compiling a line."""
    named = os.environ.get("CC")
    found = named or shutil.which("gcc") or shutil.which("clang") or ""
    if not found:
        return "", "no C compiler: CC is not set, and neither gcc nor clang is on the path"
    scheme = sysconfig.get_default_scheme()
    include = sysconfig.get_paths(scheme="posix_prefix" if scheme == "posix_local" else scheme)["include"]
    command = [found, "-fsyntax-only", f"-I{include}", "-x", "c", "-"]
    try:
        done = subprocess.run(command, input=PROGRAM, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return found, f"{'CC is ' if named else ''}{found}, which cannot be run: {error}"
    if not done.returncode:
        return found, ""
    if not (Path(include) / "Python.h").exists():
        return found, f"there is no Python.h in {include}"
    wrong = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
    return found, f"{found} cannot compile a line that includes Python.h: {wrong[:200]}"
