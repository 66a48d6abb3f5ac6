"""`python -m bench.gate REF | check | record`: has a change made the code slower?

    REF      the working tree against commit REF, both loaded side by side and taking turns
    check    the working tree against the committed record of this device
    record   measure the working tree and write such a record

Exit codes: 0 nothing is slower, 1 something is (or is gone), 2 a mistake in the command or a wrong result, 3 undecided,
4 it cannot run here, or there is no record of this device. Under make every code but 0 becomes 2; the last line says
which it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from bench.errors import BenchError, CannotRunError, UsageError
from bench.provenance import commit, device_name, versions

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]
MARGINS = {"check": 0.15}
MARGIN = 0.05
BUSY_BYTES = 2 << 30
LOCAL = Path("results/local/gate.json")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `argv` (default: of this process) and return its exit code."""
    try:
        args = _parser().parse_args(argv)
        return _run(args)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> _Parser:
    parser = _Parser("bench.gate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("ref", metavar="REF | check | record", help="a commit, branch or tag; or one of these two words")
    add("--only", metavar="PATTERNS", default="*", help="cases, such as 'linear/lut/*,quantize/nf4*'")
    add("--margin", type=_margin, help="the slow-down that must be found (default: 5%%; of check: 15%%)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda where there is one")
    add("--same", action="store_true", help="measure even if both versions have the same sources")
    add("--allow-busy", action="store_true", help="on a GPU that other processes use, too")
    add("--results", type=Path, default=ROOT / "results", help="where the records of check and record are")
    add("--file", type=Path, help="of record: where it goes (default: below --results, by the name of the device)")
    add("--seconds", type=float, default=math.inf, help="of record: begin no further case when the process is so old")
    add("--json", type=Path, default=ROOT / LOCAL, help=f"where the findings go (default: {LOCAL})")
    return parser


def _run(args: argparse.Namespace) -> int:
    from bench.gate.clocks import one_thread
    from bench.measure.speed import refuse_interpreter

    try:
        refuse_interpreter()
    except ValueError as error:
        raise CannotRunError(str(error)) from error
    device = _device(args.device, args.allow_busy)
    with one_thread(), TemporaryDirectory() as folder:
        if args.ref == "record":
            return _record(args, device, Path(folder))
        with suppress(OSError):
            args.json.unlink()  # the findings of another run are not those of this one
        if args.ref == "check":
            return _check(args, device, Path(folder))
        return _gate(args, device, Path(folder))


def _gate(args: argparse.Namespace, device: str, folder: Path) -> int:
    from bench.gate.compare import compared
    from bench.gate.trees import at_commit, working
    from bench.gate.verdict import Rule

    rule = Rule(args.margin or MARGIN)
    reference, new = at_commit(ROOT, args.ref, folder / "reference"), working(ROOT, folder / "new")
    if reference.digest() == new.digest() and not args.same:
        print(f"OK: kernels/ and quant/ are the same as in {reference.label}; nothing to measure (--same measures)")
        return 0
    about = _about(device)
    print(f"{new.label} / {reference.label} on {about['device']}: {about['clock']}; above 1 is slower")
    rows = compared(reference, new, _cases(device, args.only), _clock(device), rule)
    return _end(args, rows, rule, {**about, "reference": reference.label})


def _check(args: argparse.Namespace, device: str, folder: Path) -> int:
    from bench.gate import record
    from bench.gate.trees import working
    from bench.gate.verdict import Rule

    rule, about = Rule(args.margin or MARGINS["check"]), _about(device)
    path = record.find(args.results, about)
    before, tree, cases, clock = record.read(path), working(ROOT, folder), _cases(device, args.only), _clock(device)
    before["cases"] = {name: case for name, case in before["cases"].items() if _matches(name, args.only)}
    print(
        f"working tree / {path} on {about['device']}: {about['clock']}, as ratios to a plain product; above 1 is slower"
    )
    now = dict(_told(record.series(tree, cases, clock)))
    slow = [row.name for row in record.checked(before, now, rule) if row.verdict == "SLOW"]
    if slow:  # as in the gate, a second measurement counts
        now |= dict(_told(record.series(tree, cases, clock, slow, seed=1)))
    return _end(args, record.checked(before, now, rule), rule, {**about, "reference": str(path)})


def _record(args: argparse.Namespace, device: str, folder: Path) -> int:
    from bench.gate import record
    from bench.gate.trees import working
    from bench.gpu.machine import process_age

    about, tree = _about(device), working(ROOT, folder)
    path = record.place(args.results, about, args.file)
    head, dirty = commit()
    kept: dict[str, Any] = {k: about[k] for k in record.NAMED}
    kept |= {"commit": head, "dirty": dirty, "sources": tree.digest(), "versions": versions()}
    found: dict[str, Any] = {}
    lacking: dict[str, str] = {}
    cases, seconds = _cases(device, args.only), args.seconds - process_age()
    for name, one in _told(record.series(tree, cases, _clock(device), spare=lacking.__setitem__, seconds=seconds)):
        found[name] = one
        record.write(path, kept | {"lacking": lacking}, found)
    if found and lacking:
        record.write(path, kept | {"lacking": lacking}, found)
    late = [name for name, why in lacking.items() if why == record.LATE]
    for name in (failed := [name for name in lacking if name not in late]):
        print(f"failed: {name}: {lacking[name]}")
    for name in late:
        print(f"not reached: {name}")
    print(f"{len(found)} cases on record in {path}; failed {len(failed)}, not reached {len(late)}")
    return 2 if failed else 0 if found else 4


def _end(args: argparse.Namespace, rows: Sequence[Any], rule: Any, about: dict[str, Any]) -> int:
    from bench.gate.compare import exit_code
    from bench.gate.show import last_line, table

    if not rows:
        raise UsageError(f"--only {args.only!r} matches no case")
    print(table(rows))
    print(last_line(rows, rule))
    code = exit_code(rows)
    text = json.dumps(
        {**about, "exit_code": code, "margin": rule.margin, "cases": [row.as_dict() for row in rows]}, indent=1
    )
    try:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        print(f"warning: cannot write {args.json}: {error.strerror}", file=sys.stderr)
    return code


def _cases(device: str, only: str) -> Any:
    from bench.gate.cases import cpu_cases
    from bench.gate.cuda_cases import cuda_cases

    def chosen(reference: Any, new: Any) -> list[Any]:
        every = cuda_cases(reference, new) if device == "cuda" else cpu_cases()
        return [case for case in every if _matches(case.name, only)]

    return chosen


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern.strip()) for pattern in patterns.split(","))


def _clock(device: str) -> Any:
    import torch

    from bench.gate.clocks import HeldClock, ThreadClock

    return ThreadClock() if device == "cpu" else HeldClock(torch.device("cuda"))


def _device(asked: str, allow_busy: bool) -> str:
    """ "cpu" or "cuda"; CannotRunError when a GPU is asked for and there is none, or others use it."""
    import torch

    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise CannotRunError("--device cuda: no CUDA device here; --device cpu gates the CPU paths")
    free, total = torch.cuda.mem_get_info()
    if total - free > BUSY_BYTES and not allow_busy:
        used = (total - free) / 2**30
        raise CannotRunError(
            f"the GPU has {used:.1f} GiB in use: its times are not to be trusted; --allow-busy to go on"
        )
    return "cuda"


def _about(device: str) -> dict[str, Any]:
    import torch

    name = device_name(device)
    short = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
    folder = f"cpu-{os.cpu_count()}-cores" if device == "cpu" else short
    clock = type(_clock(device)).what
    return {"device": name, "clock": clock, "torch": torch.__version__, "folder": folder}


def _told(pairs: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    for name, found in pairs:
        print(name, file=sys.stderr, flush=True)
        yield name, found


def _margin(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a margin between 0 and 1, such as 5% or 0.05")
    return value


if __name__ == "__main__":
    sys.exit(main())
