"""`python -m bench.models prepare [SPEC ...]`: the one-time work of the embedded models, at set-up."""

from __future__ import annotations

import sys
import time

from bench.models import ModelError, prepare

EMBEDDED = ("minilm", "smollm2")


def main(arguments: list[str]) -> int:
    """Prepare the named models (default: the embedded ones); 2 for a wrong call, 1 when a model cannot be had."""
    if not arguments or arguments[0] != "prepare":
        print("usage: python -m bench.models prepare [SPEC ...]", file=sys.stderr)
        return 2
    for spec in arguments[1:] or EMBEDDED:
        begin = time.perf_counter()
        try:
            prepare(spec)
        except ModelError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"{spec}: ready ({time.perf_counter() - begin:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
