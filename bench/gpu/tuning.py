"""Tuning: every configuration of every kernel timed at the shapes of `bench.gpu.shapes`, the fastest remembered.

Compiling takes most of it, so all configurations are compiled first, by several processes that fill the one cache of
Triton; then one process times them, by CUDA graphs with rotated inputs as the benchmark does. The table is written by
`kernels.tuned`, which also says what a class of shape is: of several inputs of one class the first is timed.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bench.gpu.shapes import SHAPES, TINY_SHAPES, Shape
from bench.gpu.store import Sink
from bench.gpu.subjects import DTYPE, SCALE, total_bytes
from bench.gpu.sweep import Budget
from bench.gpu.timing import Watch, one_line
from kernels import tuned
from kernels.op import operations
from kernels.tuning import Launch, recorded
from quant import METHODS
from quant.engines.triton import Fused

__all__ = ["FORMATS", "compile_all", "compile_share", "dense_weight", "launches", "place_of", "seconds_of", "tune"]

FORMATS = (
    "nf4-g64-dq",
    "uniform-int4-g64",
    "nf4-g64",
    "uniform-int8-channel",
    "uniform-int3-g64",
    "uniform-int2-g64",
)
KINDS = ("matmul", "dequantize", "grad", "lora")
ROWS = (1, 16, 64, 32)
GRAD_ROWS = 64
RANK = 16
SAMPLES = 5
Seconds = Callable[[Launch, Any], float]


@dataclass(frozen=True)
class Work:
    """A launch to be tuned, and what it is part of."""

    label: str
    launch: Launch


def dense_weight(shape: Shape, device: str) -> Tensor:
    """A random weight [n, k]."""
    draw = torch.Generator(device).manual_seed(shape.n)
    return torch.randn(shape.n, shape.k, dtype=DTYPE, device=device, generator=draw).mul_(SCALE)


def launches(device: str, tiny: bool = False) -> Iterator[Work]:
    """Everything there is to tune, each class of shape once: what the targets are set at first.

    At the first shape also the operations that no format of `FORMATS` calls.
    """
    seen: set[str] = set()
    shapes = TINY_SHAPES if tiny else SHAPES
    for shape in shapes:
        for method in FORMATS:
            weight = Fused(METHODS[method].quantize(dense_weight(shape, device)))
            for what, arguments in uses(weight, shape, device):
                name = f"{weight.family}_{what}"
                if name in operations():
                    yield from fresh(name, f"{method} {shape}", arguments, seen)
        if shape == shapes[0]:
            called = {f"{family}_{what}" for family in ("codebook", "affine") for what in KINDS}
            for name, op in operations().items():
                if name not in called:
                    sized = op.sized(ROWS[1], shape.n, shape.k, DTYPE, device).arguments
                    yield from fresh(name, str(shape), sized, seen)


def uses(weight: Fused, shape: Shape, device: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Operations of `KINDS` with their arguments."""
    own = weight.arguments

    def zeros(*size: int) -> Tensor:
        return torch.zeros(size, dtype=DTYPE, device=device)

    for m in ROWS:
        yield "matmul", {"x": zeros(m, shape.k), **own}
    yield "dequantize", {"shape": (shape.n, shape.k), "dtype": DTYPE, **own}
    yield "grad", {"dy": zeros(GRAD_ROWS, shape.n), "k": shape.k, **own}
    for m in ROWS[1:]:
        update = {"inner": zeros(m, RANK), "b": zeros(shape.n, RANK)}
        yield "lora", {"x": zeros(m, shape.k), **update, **own}


def fresh(name: str, label: str, arguments: Mapping[str, Any], seen: set[str]) -> Iterator[Work]:
    """The launches of an operation whose class was not seen before."""
    for launch in recorded(operations()[name].triton, arguments)[1]:
        place = place_of(launch)
        if place not in seen:
            seen.add(place)
            yield Work(f"{name} {label}", launch)


def place_of(launch: Launch) -> str:
    """The entry of the table that a launch reads."""
    kernel = launch.kernel
    return f"{kernel.fn.__name__}-{tuned.shape_class(launch.arguments, kernel.key)}"


def pinned(launch: Launch, config: Any) -> Launch:
    """The launch in this configuration and no other."""
    return dataclasses.replace(launch, kernel=dataclasses.replace(launch.kernel, configs=(config,)))


def compile_share(device: str, i: int, n: int, budget: Budget) -> int:
    """Launch the configurations whose number is i modulo n once each; how many there were. A failure is left to `tune`.

    Those of the first shape alone: the compiled code depends on the format first, and on the shape where its sizes are
    divided otherwise; what another shape still needs is compiled when it is timed.
    """
    done = 0
    first = SHAPES[0]
    for number, (work, config) in enumerate((w, c) for w in launches(device) for c in w.launch.kernel.configs):
        if str(first) not in work.label or budget.left <= 0:
            break
        if number % n == i:
            try:
                pinned(work.launch, config).run()
                torch.cuda.synchronize()
            except Exception as error:
                print(f"{work.label}: {one_line(error)}", flush=True)
            done += 1
    return done


def compile_all(device: str, n: int, seconds: float) -> list[int | None]:
    """`compile_share` in `n` processes, ended after `seconds`; their exit codes, None for one that had to be ended."""
    command = [sys.executable, "-m", "bench.gpu", "compile", "--device", device, "--seconds", f"{seconds:.0f}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # there are as many processes as processors
    started = [subprocess.Popen([*command, "--shard", f"{i}/{n}"], env=environment) for i in range(n)]
    end = time.monotonic() + seconds + 2
    codes: list[int | None] = []
    for process in started:
        try:
            codes.append(process.wait(timeout=max(end - time.monotonic(), 0.0)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            codes.append(None)
    return codes


def seconds_of(watch: Watch) -> Seconds:
    """A function that times a launch in a configuration: median of replays over copies of its tensors."""

    def timed(launch: Launch, config: Any) -> float:
        one = pinned(launch, config)
        copies = [
            dataclasses.replace(one, arguments=tree_map(_copy, dict(launch.arguments)))
            for _ in range(watch.copies(total_bytes(dict(launch.arguments))))
        ]
        calls = [copy.run for copy in copies]
        for call in calls:
            call()
        replay = watch.replay(calls)
        if isinstance(replay, str):
            return statistics.median(watch.once(calls[i % len(calls)])[0] for i in range(SAMPLES))
        return statistics.median(replay() for _ in range(SAMPLES))

    return timed


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def tune(works: Iterable[Work], seconds: Seconds, device_name: str, sink: Sink, budget: Budget, about: Any) -> int:
    """Time every configuration of every launch and remember the fastest; a record each. How many failed.

    A configuration that cannot run counts as infinitely slow; a launch of which none can has failed. After the budget
    nothing more is tuned, which the last record says.
    """
    wrong = 0
    for work in works:
        head = {"kind": "tuned", "key": f"{device_name} / tuned / {place_of(work.launch)}", "device": about["device"]}
        head |= {"kernel": work.launch.kernel.fn.__name__, "place": place_of(work.launch), "what": work.label}
        head |= {"provenance": about}
        if budget.left <= 0:
            sink(head | {"status": "skipped", "reason": "the time budget ended before it and what follows"})
            return wrong
        times: list[tuple[dict[str, Any], float | None, str]] = []

        def one(config: Any, launch: Launch = work.launch, times: list[Any] = times) -> float:
            try:
                spent = seconds(launch, config)
            except Exception as error:
                times.append((tuned.as_values(config), None, one_line(error)))
                return float("inf")
            times.append((tuned.as_values(config), spent, ""))
            return spent

        chosen = tuned.search(work.launch.kernel, work.launch.arguments, device_name, one)
        failed = bool(times) and all(t is None for _, t, _ in times)
        wrong += failed
        reasons = "; ".join(dict.fromkeys(r for _, _, r in times if r))
        head |= {"status": "failed" if failed else "ok", "reason": reasons}
        head |= {"config": tuned.as_values(chosen)}
        known = times if about["device"] == "cuda" else []
        sink(head | {"times": [{"config": c, "seconds": t} for c, t, _ in known]})
    return wrong
