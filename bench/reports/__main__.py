"""`python -m bench.reports readme RESULTS_DIR README.md [--check]`: fill the README's generated parts, or compare.
`python -m bench.reports kernels DIR`: tables, plots and REPORT.md from the records of `make gpu`.

Exit codes: 0 done or equal; 1 with `--check` when the README differs from the records; 2 for what cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import UsageError
from bench.reports.readme import filled, load


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.reports", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    readme = commands.add_parser("readme", help="fill the generated parts of a README from records")
    readme.add_argument("results", type=Path, help="folder with records (*.jsonl) and plots")
    readme.add_argument("readme", type=Path, help="file with <!-- begin:NAME --> and <!-- end:NAME --> marks")
    readme.add_argument("--check", action="store_true", help="change nothing; exit 1 when the file would change")
    kernels = commands.add_parser("kernels", help="tables and plots from the records of a GPU")
    kernels.add_argument("folder", type=Path, help="folder with kernels.jsonl, training.jsonl or stages.jsonl")
    given = parser.parse_args(arguments)
    try:
        if given.command == "kernels":
            from bench.reports.kernels import write

            print("\n".join(map(str, write(given.folder))))
            return 0
        before = given.readme.read_text(encoding="utf-8")
        after = filled(before, load(given.results), given.results, given.readme)
    except (OSError, ValueError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if after == before:
        return 0
    if given.check:
        again = f"python -m bench.reports readme {given.results} {given.readme}"
        print(f"error: {given.readme} differs from the records in {given.results}; run: {again}", file=sys.stderr)
        return 1
    given.readme.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
