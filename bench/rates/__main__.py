"""`python -m bench.rates`: the rate-matched table, every method at its measured bits against its source's bound."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from bench.provenance import default_threads

EPILOG = """examples:
  python -m bench.rates                                every method, about two minutes on two cores; resumes
  python -m bench.rates --methods 'nf4*,ecsq*' --sources gaussian --out results/local/rates
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, write the records and the tables; 2 for a pattern that matches nothing."""
    parser = argparse.ArgumentParser(
        "bench.rates", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/local/default"), help="the results folder")
    parser.add_argument("--methods", default="*", metavar="PATTERNS", help="such as 'nf4*,ecsq*'")
    parser.add_argument("--sources", default="*", metavar="PATTERNS", help="of gaussian, laplace, model")
    parser.add_argument("--workers", type=int, default=default_threads(), help="processes beside each other")
    options = parser.parse_args(argv)

    from bench.rates.sources import SOURCES
    from bench.rates.store import run
    from bench.reports.rates import write
    from quant import METHODS

    chosen = {}
    for what, names in (("methods", list(METHODS)), ("sources", [s.name for s in SOURCES])):
        patterns = getattr(options, what).split(",")
        chosen[what] = [name for name in names if any(fnmatchcase(name, p) for p in patterns)]
        if not chosen[what]:
            print(f"error: --{what} {getattr(options, what)!r} matches none of {', '.join(names)}", file=sys.stderr)
            return 2

    def told(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr)

    found = run(options.out, chosen["methods"], chosen["sources"], options.workers, told)
    for record in found:
        if record["status"] == "error":
            print(f"{record['method']} on {record['source']}: {record['reason']}", file=sys.stderr)
    print("\n".join(str(path) for path in write(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
