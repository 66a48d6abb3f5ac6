"""`python -m bench.sensitivity`: quantize one matrix at a time, and draw how far each moves what the model says."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

EPILOG = """examples:
  python -m bench.sensitivity                            every fifth block, three methods, about three minutes; resumes
  python -m bench.sensitivity --every 1 --methods 'uniform-int?-asym-g64'
"""
DEFAULT = "uniform-int4-asym-g64,uniform-int3-asym-g64,nf4-g64-dq"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, write the records and the heatmap; 2 for a pattern that matches nothing."""
    parser = argparse.ArgumentParser(
        "bench.sensitivity", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/local/default"), help="the results folder")
    parser.add_argument("--model", default="smollm2", help="a causal model")
    parser.add_argument("--methods", default=DEFAULT, metavar="PATTERNS", help=f"default: {DEFAULT}")
    parser.add_argument("--every", type=int, default=5, help="measure every so many blocks (default: 5)")
    options = parser.parse_args(argv)

    from bench.reports.sensitivity import write
    from bench.sensitivity.store import run
    from quant import METHODS

    patterns = options.methods.split(",")
    methods = [name for name in METHODS if any(fnmatchcase(name, p) for p in patterns)]
    if not methods or options.every < 1:
        what = f"--methods {options.methods!r} matches no method" if not methods else "--every must be at least 1"
        print(f"error: {what}", file=sys.stderr)
        return 2
    run(options.out, options.model, methods, options.every, lambda text: print(text, file=sys.stderr))
    print("\n".join(str(path) for path in write(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
