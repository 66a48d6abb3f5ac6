"""`python -m bench.micro`: the kernel benchmark under pytest-benchmark, then tables and plots from its records.

Without a CUDA device it times the CPU paths instead, says so, and lists what was not timed and why. Where pytest or
pytest-benchmark is not installed the same cells run without its table.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.errors import BenchError
from bench.gpu.__main__ import main as gpu
from bench.gpu.kernels import Plan, kernel_plan
from bench.gpu.machine import interpreter_on, slug
from bench.gpu.shapes import ROWS
from bench.gpu.store import results_folder
from bench.micro import test_cpu_linear

__all__ = ["main", "not_timed"]

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit code of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three shapes, five numbers of rows")
    parser.add_argument("--budget", type=float, metavar="S", help="seconds for all kernels")
    parser.add_argument("--records", type=Path, metavar="DIR", help="where records go (default: results/gpu-<device>)")
    given, rest = parser.parse_known_args(arguments)
    if interpreter_on():
        print("error: TRITON_INTERPRET is set: times of interpreted kernels mean nothing; unset it", file=sys.stderr)
        return 2
    cuda = torch.cuda.is_available()
    code = timed(given, rest, cuda)
    if not cuda:
        print(f"\nNo CUDA device (torch {torch.__version__}): the figures are those of the CPU paths.\n")
        test_cpu_linear.main()
        print(f"\n{not_timed(kernel_plan(given.quick))}")
        return code
    return code or report(results_folder(given.records, slug("cuda")))


def timed(given: argparse.Namespace, rest: Sequence[str], cuda: bool) -> int:
    """The cells under pytest-benchmark, or without it where it is absent."""
    options = ["--quick"] * given.quick
    lacking = [name for name in ("pytest", "pytest_benchmark") if importlib.util.find_spec(name) is None]
    if lacking:
        print(f"{', '.join(lacking)} not installed: the same cells without its table")
        options += ["--out", str(given.records)] if given.records else []
        options += ["--seconds", str(given.budget)] if given.budget else []
        return gpu(["kernels", *options]) if cuda else 0
    import pytest

    options += ["--records", str(given.records)] if given.records else []
    options += ["--budget", str(given.budget)] if given.budget else []
    return int(pytest.main([str(HERE), "--benchmark-enable", "--benchmark-only", *options, *rest]))


def report(folder: Path) -> int:
    """Tables and plots of the records; what is missing for them is said."""
    try:
        return gpu(["report", str(folder)])
    except (ImportError, BenchError) as error:
        print(f"no report: {error}. The records are in {folder}")
        return 0


def not_timed(plan: Plan) -> str:
    """What needs a GPU, competitor by competitor, and where it would be timed."""
    shapes = dict.fromkeys(f"{b.shape} ({b.shape.layer})" for b in plan.blocks)
    rows = [m for m in ROWS if any(b.m == m for b in plan.blocks)]
    why = "needs a CUDA device; interpreted kernels are never timed"
    lines = [f"Not timed here ({why}):"]
    lines += [f"  {s.level:<9}{s.name}" for s in plan.subjects if s.level != "layer"]
    names = ", ".join(s.name for s in plan.subjects if s.level == "layer")
    lines += [
        f"  on a GPU {names}",
        f"at {', '.join(shapes)}; rows {', '.join(map(str, rows))}; {len(plan.blocks)} blocks",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
