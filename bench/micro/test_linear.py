"""Every kernel, every format and every rival on the layers of Llama-3, each beside the dense layer in the same rounds.

The samples are those of `bench.gpu`: of kernels by CUDA graphs with rotated inputs where they can be captured, else of
eager calls with the cache overwritten. pytest-benchmark reads them from a clock that they move. Without a GPU only the
references are timed, in CPU seconds of the thread; the interpreter is never timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.gpu.shapes import Block
from bench.gpu.subjects import total_bytes
from bench.micro.conftest import Measured
from kernels.op import operations

SIZES = {"m1": (1, 1024, 1024), "m32": (32, 1024, 1024)}
SHOWN = ("status", "device", "implementation", "time_kind", "moved_bytes", "bandwidth_share", "relative_error")


class SampleClock:
    """A clock that samples move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def player(self, samples: Sequence[float]) -> Callable[[], None]:
        """A function that takes, in clock time, one sample after the other."""
        left = iter(samples)

        def play() -> None:
            self.now += next(left)

        return play


CLOCK = SampleClock()


@pytest.mark.benchmark(timer=CLOCK)
def test_kernel(block: Block, name: str, measured: Measured, benchmark: BenchmarkFixture) -> None:
    record, samples = measured.cell(block, name)
    if record["status"] == "skipped":
        pytest.skip(record["reason"])
    assert record["status"] == "ok", record["reason"]
    seconds = samples.graph or samples.eager
    benchmark.group = str(block)
    benchmark.extra_info.update({key: record.get(key) for key in SHOWN})
    benchmark.extra_info["speedup"] = record["speedup"]["value"]
    run: Any = benchmark.pedantic
    run(CLOCK.player(seconds), rounds=len(seconds))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", list(operations()))
@pytest.mark.benchmark(timer=time.thread_time)
def test_reference_cpu(name: str, size: str, benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> None:
    if torch.cuda.is_available() or request.config.getoption("--tiny"):
        pytest.skip("references are timed where there is nothing else to time")
    op = operations()[name]
    arguments = op.sized(*SIZES[size], torch.float32, "cpu").arguments
    out = op.reference(**arguments)
    benchmark.group = f"{op.name} {size} cpu"
    benchmark.extra_info.update(device="cpu", implementation="reference", moved_bytes=total_bytes(arguments, out))
    run: Any = benchmark.pedantic
    run(lambda: op.reference(**arguments), rounds=10, warmup_rounds=1)
