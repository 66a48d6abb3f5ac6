"""An executor that says how many threads torch has; torch is loaded before the child is forked, as in a real run."""

from __future__ import annotations

import os
from typing import Any

import torch

from bench.schema import Cell


def execute(cell: Cell, protocol: object) -> dict[str, Any]:
    return {"training": {"threads": torch.get_num_threads(), "omp": os.environ["OMP_NUM_THREADS"]}}


if __name__ == "__main__":
    import sys
    from pathlib import Path

    from bench import schedule
    from tests.bench.toy_main import run_toys

    schedule.WORKER_BYTES = 1
    out, threads, *cells = sys.argv[1:]
    sys.exit(run_toys(Path(out), cells, threads=int(threads), executor="tests.bench.toy_threads:execute"))
