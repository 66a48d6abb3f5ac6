"""Every operation of `kernels`, as reference and as Triton kernel, at a decoding and at a prefill batch.

On the CPU the reference is timed in CPU seconds of this thread, which other processes disturb least; the interpreter
is never timed. On a GPU both are timed by events around one call, with the L2 cache flushed before it; pytest-benchmark
reads them from a virtual clock. Each row's `extra_info` names device and implementation, and the bytes of its inputs
and output, from which the bandwidth follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from kernels.op import Op, operations

SIZES = {"m1": (1, 1024, 1024), "m32": (32, 1024, 1024)}
GPU_SIZES = {"m1": (1, 8192, 8192), "m32": (32, 8192, 8192), "m512": (512, 8192, 8192)}
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


class EventClock:
    """Seconds that calls took on the GPU so far, by CUDA events; the launch's own cost is not in them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def timed(self, call: Callable[[], Tensor]) -> Callable[[], None]:
        """`call` with a cold L2 cache, its time added to the clock."""
        cold = torch.empty(256 << 20, dtype=torch.int8, device="cuda")

        def once() -> None:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            cold.zero_()
            start.record()
            call()
            end.record()
            end.synchronize()
            self.now += start.elapsed_time(end) * 1e-3

        return once


CLOCK = EventClock()


def nbytes(arguments: Mapping[str, Any], out: Tensor) -> int:
    """Bytes that a call must at least read and write."""
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)] + [out]
    return sum(t.numel() * t.element_size() for t in tensors)


def label(benchmark: BenchmarkFixture, op: Op, size: str, device: str, implementation: str, moved: int) -> None:
    """Say in the result what was run and where."""
    benchmark.group = f"{op.name} {size} {device}"
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    benchmark.extra_info.update(device=name, implementation=implementation, moved_bytes=moved)


def timed(benchmark: Any, call: Callable[[], object], rounds: int, warmup: int) -> None:
    """Run it: the number of rounds is fixed, since calibration asks for a clock that runs by itself."""
    benchmark.pedantic(call, rounds=rounds, warmup_rounds=warmup)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", list(operations()))
@pytest.mark.benchmark(timer=time.thread_time)
def test_reference_cpu(name: str, size: str, benchmark: BenchmarkFixture) -> None:
    op = operations()[name]
    arguments = op.sized(*SIZES[size], torch.float32, "cpu").arguments
    out = op.reference(**arguments)
    label(benchmark, op, size, "cpu", "reference", nbytes(arguments, out))
    timed(benchmark, lambda: op.reference(**arguments), rounds=10, warmup=1)


@CUDA
@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("size", GPU_SIZES)
@pytest.mark.parametrize("name", list(operations()))
@pytest.mark.benchmark(timer=CLOCK)
def test_cuda(name: str, size: str, implementation: str, benchmark: BenchmarkFixture) -> None:
    op = operations()[name]
    function = {"reference": op.reference, "triton": op.triton}[implementation]
    arguments = op.sized(*GPU_SIZES[size], torch.bfloat16, "cuda").arguments
    out = function(**arguments)
    wrong = op.disagreement(out, arguments)
    assert wrong is None, wrong
    label(benchmark, op, size, "cuda", implementation, nbytes(arguments, out))
    timed(benchmark, CLOCK.timed(lambda: function(**arguments)), rounds=100, warmup=10)
