"""Seconds to quantize one 4096 x 4096 layer on the CPU, all cores, against what each method may take.

The weight is N(0, 1); the inputs' second moment is that of an autoregressive sequence of 2048 rows with some channels
ten times as large, gathered beforehand. The median of the passes and their range are reported; a first pass that
compiles is not counted. Run as `python -m bench.micro.test_quantize_times` for the table, or under pytest for a smoke
run on small layers. Any methods may be named instead of these.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence

import pytest
import torch

from bench.provenance import commit, cpu_model
from quant import METHODS, Calibration

__all__ = ["LIMITS", "main", "measure"]

SIZE = 4096
PASSES = 3
# method -> seconds that it may take on two cores
LIMITS = {
    "uniform-int4-g64": 0.5,
    "uniform-int4-asym-g64": 0.5,
    "nf4-g64": 0.5,
    "nf4-g64-dq": 0.5,
    "kmeans-4bit-tensor": 1.0,
    "kmeans-4bit-row": 10.0,
    "squeezellm-4bit": 10.0,
    "hqq-int4-g64": 5.0,
    "gptq-int4-g64": 60.0,
    "gptq-nf4-g64": 60.0,
}
# timed beside them, without a limit
OTHERS = ("awq-int4-g64", "sparsegpt-50", "lnq-3bit", "gguf-q4-k", "searched-nf4-g64", "searched-int3-inputs-g64")
LONG = 60.0  # seconds; a method whose first pass takes more is passed once
HEADING = """# Quantizing one layer of 4096 x 4096 on the CPU

Seconds, the median of 3 passes after a first one that is not counted, and their range; a method that takes over a
minute is passed once. The gathering of a calibration is not in them. k-means of a row is exact; of a tensor of this
size it takes near values together, and its error is within 1e-4 of the least one where that is known.
"""
ABOUT = ("MALLOC_", "OMP_", "GOMP_", "KMP_")  # settings of the environment that may change a time are printed


def calibration(size: int, names: frozenset[str]) -> Calibration | None:
    """Correlated inputs with large channels, and a Fisher information that varies over three decades."""
    if not names:
        return None
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size // 2, size, generator=generator)
    for j in range(1, size):
        x[:, j] = 0.8 * x[:, j - 1] + 0.6 * x[:, j]
    x[:, ::64] *= 10
    fisher = 10.0 ** (-3 * torch.rand(size, size, generator=generator)) if "fisher" in names else None
    return Calibration(x.T @ x / len(x), x.abs().mean(0), fisher, len(x))


def measure(method: str, size: int = SIZE, passes: int = PASSES) -> list[float]:
    """Wall seconds of each pass, ascending."""
    quantizer = METHODS[method]
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    known = calibration(size, quantizer.needs)
    if known is None or known.fisher is None:
        quantizer.quantize(weight[:64], known)  # what is compiled is compiled now
    else:
        part = Calibration(known.second_moment, known.magnitude, known.fisher[:64], known.n_samples)
        quantizer.quantize(weight[:64], part)
    taken = []
    for _ in range(passes):
        begin = time.perf_counter()
        quantizer.quantize(weight, known)
        taken.append(time.perf_counter() - begin)
        if taken[0] > LONG:
            break
    return sorted(taken)


@pytest.mark.parametrize("method", [*LIMITS, *OTHERS])
def test_every_method_of_the_table_is_timed(method: str) -> None:
    taken = measure(method, size=128, passes=2)
    assert len(taken) == 2
    assert 0 < taken[0] <= taken[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as Markdown, with what it was measured on; `arguments` are methods, all of them where none is."""
    names = list(sys.argv[1:] if arguments is None else arguments) or [*LIMITS, *OTHERS]
    if unknown := [name for name in names if name not in METHODS]:
        raise SystemExit(f"error: unknown method {unknown[0]!r}; `bench list methods` names them")
    print(HEADING)
    threads = torch.get_num_threads()
    about = f"{cpu_model()}, {threads} threads, torch {torch.__version__}, commit {str(commit()[0])[:12]}"
    kept = "".join(f"{name}={os.environ[name]} " for name in sorted(os.environ) if name.startswith(ABOUT))
    given = "" if names == [*LIMITS, *OTHERS] else " " + " ".join(names)
    print(f"{about}. `{kept}python -m bench.micro.test_quantize_times{given}`\n")
    print("| method | seconds | range | may take | |")
    print("|:--|--:|:--|--:|:--|")
    for method in names:
        print(line(method, measure(method)), flush=True)


def line(method: str, taken: Sequence[float]) -> str:
    """A row of the table; without a limit, its last two columns are empty."""
    middle, limit = statistics.median(taken), LIMITS.get(method)
    judged = "| |" if limit is None else f"{limit:g} | {'within' if middle <= limit else 'OVER'} |"
    return f"| {method} | {middle:.2f} | {taken[0]:.2f} to {taken[-1]:.2f} | {judged}"


def test_a_row_without_a_limit_is_not_judged() -> None:
    assert line("awq-int4-g64", [1.0, 2.0, 3.0]) == "| awq-int4-g64 | 2.00 | 1.00 to 3.00 | | |"
    assert line("nf4-g64", [0.2, 0.6, 0.7]) == "| nf4-g64 | 0.60 | 0.20 to 0.70 | 0.5 | OVER |"


def test_a_method_that_is_not_known_is_named() -> None:
    with pytest.raises(SystemExit, match="unknown method 'nf5'; `bench list methods` names them"):
        main(["nf4-g64", "nf5"])


if __name__ == "__main__":
    main()
