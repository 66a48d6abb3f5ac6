"""`python -m bench.static`: compile every kernel for GPUs that are not here and compare with the committed baseline.

Exit code 1 when a kernel is WORSE or a rule is BROKEN, 2 for a wrong command line, 0 else. Nothing is run or timed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.static.screen import Screen

__all__ = ["main"]

FOLDER = Path("results/static")
UNSAID = "the kernels as they are"
EPILOG = """examples:
  python -m bench.static                                  all kernels, all targets
  python -m bench.static --only 'codebook_*' --target sm_90
  python -m bench.static --write 'wider loads of codes'   write the baseline, with the reason for the change
  python -m bench.static --predict                        times that a model predicts from the counts
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gate with the options `argv` (default: of this process) and return its exit code."""
    options = _parser().parse_args(argv)
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(".cache/triton").absolute()))  # before triton is imported
    screen = Screen()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        screen.print("error: TRITON_INTERPRET is set, and interpreted kernels cannot be compiled: unset it")
        return 2
    if options.predict:
        from bench.static.predict import write

        write(options.folder / "predictions.md", options.only, screen)
        return 0
    return _gate(options, screen)


def _gate(options: argparse.Namespace, screen: Screen) -> int:
    from bench.static.compare import baseline_file, compare, load, merged, save
    from bench.static.figures import measure, selected
    from bench.static.table import print_rows, summary
    from kernels.aot import TARGETS, VERSION

    targets = options.target or list(TARGETS)
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        screen.print(f"error: unknown target {unknown[0]!r}; known: {', '.join(TARGETS)}")
        return 2
    started = time.monotonic()
    now = measure(options.only, targets, options.workers)
    if not now:
        screen.print(f"error: no kernel matches {options.only!r}")
        return 2
    file = baseline_file(options.folder, VERSION)
    base = load(file)
    known = None if base is None else {case: known for case, known in base.items() if selected(case, options.only)}
    rows = compare(now, known, targets)
    print_rows(screen, rows, quiet=("OK",) if options.write is None else ("OK", "NEW", "GONE"))
    screen.print(f"{summary(rows)} ({time.monotonic() - started:.0f} s)")
    if base is None:
        said = "only the rules that hold always were checked; `python -m bench.static --write` makes a baseline."
        screen.print(f"No baseline for triton {VERSION} ({file}): {said}")
    if options.write is not None:
        save(file, merged(base or {}, now, known or {}, targets), options.write)
        screen.print(f"wrote {file}")
        rows = [row for row in rows if row.verdict == "BROKEN"]
    return int(any(row.red for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "bench.static", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--only", default="*", metavar="PATTERN", help="operations, or with a slash cases: 'affine_*', '*/_matmul/m1-*'"
    )
    add("--target", action="append", metavar="NAME", help="such as sm_90 or gfx942 (default: all)")
    add("--write", metavar="REASON", nargs="?", const=UNSAID, help="write the baseline, saying why it changed")
    add("--predict", action="store_true", help="write predicted times instead of comparing")
    add("--folder", type=Path, default=FOLDER, help="where the baselines lie (default: results/static)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes; 0: this one (default: one a core)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
