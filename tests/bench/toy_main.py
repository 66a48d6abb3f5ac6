"""A whole run with the toy executor, as a process: `python -m tests.bench.toy_main OUT PAUSE THREADS METHOD...`.

A method may be a whole cell, MODEL/TASK/ORDER/METHOD.
"""

import sys
from pathlib import Path

from rich.text import Text

from bench import schedule
from bench.errors import BenchError
from bench.experiment import Experiment
from bench.plan import Fingerprints
from bench.schema import Cell
from bench.session import Options, Reports, run_session
from tests.bench.toys import ToyProtocol


class ToyMethod:
    """As much of a quantizer as a plan asks for."""

    family = "none"

    def __init__(self, name):
        self.name = name

    def settings(self):
        return {"name": self.name}


def run_toys(out, methods, pause_s=0.0, **options):
    cells = [Cell(*name.split("/")) if "/" in name else Cell("toy", "task", "beneath", name) for name in methods]
    experiment = Experiment("toys", True, ToyProtocol(pause_s), (), Path("toys.toml"))
    prints = Fingerprints(ToyMethod, lambda spec: "model", lambda task: "data")
    reports = Reports(
        lambda out, records, plots: [out / "README.md"], lambda records, width: Text(f"{len(records)} rows")
    )
    settings = Options(out, **{"executor": "tests.bench.toys:execute"} | options)
    return run_session(experiment, cells, prints, reports, settings)


if __name__ == "__main__":
    schedule.WORKER_BYTES = 1  # a toy takes no memory to speak of
    try:
        sys.exit(run_toys(Path(sys.argv[1]), sys.argv[4:], float(sys.argv[2]), threads=int(sys.argv[3])))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
