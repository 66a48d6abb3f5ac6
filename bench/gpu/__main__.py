"""`python -m bench.gpu`: tests, training step, kernel benchmark and report on a GPU, within a time budget.

    all         every stage, each in a process of its own (what `make gpu` runs)
    doctor      what is here and what is missing    tests       the GPU tests, shared out among processes
    tuning      the table of configurations         routes      from how many rows on to decode a weight first
    training    the training steps                  kernels     the kernel benchmark
    report DIR  tables and plots from the records in DIR
    compile, first-call                             parts of `tuning`
Exit codes: 0 done; 1 a stage or a cell failed; 2 a mistake in the command; 4 there is no CUDA device; 75 the device was
lost on the way. `--device cpu` proves the paths with tiny sizes: it shows nothing of the kernels, and says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import BenchError, CannotRunError
from bench.gpu import commands
from bench.gpu.machine import process_age

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("command", nargs="?", default="all", choices=sorted(commands.COMMANDS))
    made.add_argument("folder", nargs="?", type=Path, help="of `report`: where the records are")
    made.add_argument("--out", type=Path, help="where records go (default: results/gpu-<device>; on a CPU: nowhere)")
    made.add_argument("--seconds", type=float, help="the budget (default: 460 for all, none for a single command)")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    made.add_argument("--quick", action="store_true", help="three shapes, five numbers of rows")
    made.add_argument(
        "--dry-run", action="store_true", help="list stages and cells with a guess of the time; run nothing"
    )
    made.add_argument("--only", default="", help="stages of `all` to run, by comma")
    made.add_argument("--skip", default="", help="stages of `all` to leave out, by comma")
    made.add_argument(
        "--without", action="append", default=[], metavar="SUBJECT", help="leave a subject out; repeatable"
    )
    made.add_argument("--shard", default="0/1", metavar="I/N", help="of `compile`: which share")
    made.add_argument("--since", default="", help="do not time again what a run begun at this UTC moment has timed")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    given = parser().parse_args(arguments)
    try:
        needs = given.command not in ("report", "doctor") and not given.dry_run
        if needs and given.device == "cuda":
            require_cuda()
        if given.seconds and given.command != "all":
            given.seconds = max(1.0, given.seconds - process_age())
        code: int = commands.COMMANDS[given.command](given)
        return code
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def require_cuda() -> None:
    """Raise CannotRunError without a CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise CannotRunError(
            f"no CUDA device (torch {torch.__version__}). Here you can run: `make bench-kernels`, which times the CPU "
            "paths; `make gpu ARGS=--dry-run`, which lists what would run"
        )


if __name__ == "__main__":
    sys.exit(main())
