"""`bench`, or `python -m bench`: memory, speed and accuracy of quantization methods on LoRA-adapted models."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bench.errors import BenchError, UsageError

__all__ = ["main"]

COMMANDS = ("list", "run", "report", "show", "explain", "compare", "doctor")
KINDS = ("methods", "models", "tasks", "orders", "experiments")
EPILOG = """examples:
  bench run quick                              a smoke run on tiny models, about a minute
  bench run                                    the default suite, about twenty minutes on two cores
  bench run --methods 'nf4*,-*-g32' --dry-run  which cells, and how long
  bench run --model path:DIR                   your own checkpoint
  bench show 'minilm/imdb/beneath/nf4-g64/0'   everything about one cell
"""


class Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest right name."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `argv` (default: of this process) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _dispatch(words)
    except BenchError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: finished cells are saved", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141


def _dispatch(words: list[str]) -> int:
    if not words:
        return _welcome()
    if not words[0].startswith("-") and words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"unknown command {words[0]!r}.{hint} Known: {', '.join(COMMANDS)}")
    if words[0] == "list" and len(words) > 1 and not words[1].startswith("-") and words[1] not in KINDS:
        close = difflib.get_close_matches(words[1], KINDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"unknown list {words[1]!r}.{hint} Known: {', '.join(KINDS)}")
    parser = _parser()
    try:
        args = parser.parse_args(words)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    from bench import cli

    code: int = getattr(cli, f"{args.command}_command")(args)
    return code


def _welcome() -> int:
    """Short help, and what this machine can run."""
    from bench import doctor

    _parser().print_help()
    print()
    print(doctor.verdict(doctor.examine(Path("results"))))
    return 0


def _parser() -> Parser:
    parser = Parser("bench", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    listing = commands.add_parser("list", help="names to choose from, with what they are")
    listing.add_argument("what", choices=KINDS)
    listing.add_argument("--json", action="store_true", help="as JSON")

    _add_run(commands.add_parser("run", help="measure the cells of an experiment; run again to resume"))

    report = commands.add_parser("report", help="tables and plots from the records of a folder")
    report.add_argument("folder", type=Path, metavar="OUT")
    report.add_argument("--no-plots", dest="plots", action="store_false", help="tables only")

    for name, text in (("show", "everything about one cell"), ("explain", "why a cell would run again")):
        one = commands.add_parser(name, help=text)
        one.add_argument("cell", metavar="CELL", help="MODEL/TASK/ORDER/METHOD/SEED, or a pattern of one")
        one.add_argument("--out", type=Path, help="the results folder (default: all under results/)")
        one.add_argument("--threads", type=_positive, help="as in run")

    compare = commands.add_parser("compare", help="two results folders, or two cells, and what differs")
    compare.add_argument("a", metavar="A")
    compare.add_argument("b", metavar="B")
    compare.add_argument("--out", type=Path, help="the results folder of the two cells")
    compare.add_argument("--no-times", dest="times", action="store_false", help="quality and bytes only")

    doctor = commands.add_parser("doctor", help="what this machine can run, and how to mend what it cannot")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    doctor.add_argument("--out", type=Path, help="where results shall go")
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    add = run.add_argument
    add("experiment", nargs="?", default="default", help="default, quick, full, or a file ending in .toml")
    add("--methods", metavar="PATTERNS", help="such as 'nf4*,uniform-int4*,-*-g32'; references always run")
    add("--models", metavar="PATTERNS", help="of the experiment's models")
    add("--model", action="append", metavar="SPEC", help="path:DIR or hf:NAME in place of models of its kind")
    add("--tasks", metavar="PATTERNS")
    add("--orders", metavar="PATTERNS", help="ways of adapting: `bench list orders`")
    add("--seeds", metavar="0,1,...")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add(
        "--threads",
        type=_positive,
        help="cores to use: workers beside each other, then threads of speed cells (default: all)",
    )
    add("--out", type=Path, help="results folder (default: results/local/NAME)")
    add("--dry-run", action="store_true", help="print the cells and an estimate of the time")
    add(
        "--force",
        nargs="?",
        const="*",
        metavar="CELLS",
        help="run again what is on record, all or by pattern; adapters of `lora` and outputs of the baseline are not "
        "made again: for that remove the cache first, $QUANTBENCH_CACHE or else .cache/quantbench in the checkout",
    )
    add("--retry", metavar="STATUS,...", help="statuses to run again (default: all but ok and unsupported; or none)")
    add("--no-plots", dest="plots", action="store_false", help="tables only")
    add("--timeout", type=_seconds, default=1800.0, metavar="SECONDS", help="limit of one cell (default: 1800)")


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


if __name__ == "__main__":
    sys.exit(main())
