"""From how many rows of x on a product is faster by decoding the weight and multiplying with the vendor's library.

Both ways are timed in turns at shapes of every class of size, for a codebook and a uniform grid. The bound of a class
is the smallest number of rows from which on decoding first was faster at every number measured, by the geometric mean
over shapes and formats.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.gpu.items import dense_weight
from bench.gpu.shapes import SHAPES, TINY_SHAPES, Shape
from bench.gpu.store import Record, Sink
from bench.gpu.subjects import DTYPE, fixed
from bench.gpu.sweep import Budget
from bench.gpu.timing import Samples, Watch, measure, one_line
from bench.measure.stats import paired_ratio, stat
from kernels.dispatch import OPERATORS
from kernels.routes import DEFAULT, Bounds, size_class, taking
from quant import METHODS
from quant.core import from_config
from quant.engines.triton import Fused

__all__ = ["ROWS", "bound", "bounds_of", "find_routes"]

FORMATS = ("nf4-g64-dq", "uniform-int4-g64")
ROWS = (16, 32, 64, 128, 256, 512, 1024)
TINY_ROWS = (2, 4, 8)
WAYS = ("product", "dense")
ROUNDS, ROUND_SECONDS = 9, 0.3
Ratios = dict[str, dict[int, list[float]]]


def bound(ratios: Mapping[int, float]) -> int:
    """The bound from (time of the product) / (time of decoding first) by rows; beyond the largest where it never pays.

    >>> bound({16: 0.5, 32: 1.2, 64: 0.9, 128: 1.1, 256: 2.0})
    128
    >>> bound({16: 0.5, 1024: 0.9})
    2048
    """
    rows = sorted(ratios)
    found = max(2 * rows[-1], DEFAULT.dense)  # rows that were not timed decide nothing below the default
    for m in reversed(rows):
        if ratios[m] <= 1:
            break
        found = m
    return found


def bounds_of(found: Ratios) -> dict[str, Bounds]:
    """The bounds of each class of size that was measured; few rows keep the default way."""
    out = {}
    for size, by_rows in found.items():
        means = {m: math.exp(statistics.fmean(map(math.log, values))) for m, values in by_rows.items()}
        out[size] = Bounds(DEFAULT.gemv, max(bound(means), DEFAULT.gemv + 1))
    return out


def find_routes(watch: Watch, sink: Sink, budget: Budget, about: Mapping[str, Any], tiny: bool = False) -> Ratios:
    """Time both ways while time is left, a record each; the ratios by class of size and rows."""
    found: Ratios = {}
    rows = TINY_ROWS if tiny else ROWS
    for shape, method in places(TINY_SHAPES if tiny else SHAPES):
        weights: list[Fused] = []
        for m in rows:
            if budget.left <= 0:
                return found
            head: Record = {"kind": "route", "key": f"{about['device_name']} / route / {method} {shape} m={m}"}
            head |= {"device": watch.device, "method": method, "n": shape.n, "k": shape.k, "m": m}
            head |= {"provenance": about}
            try:
                weights = weights or copies_of(shape, method, watch)
                samples = timed(watch, weights, torch.randn(m, shape.k, device=watch.device).to(DTYPE))
            except Exception as error:
                sink(head | {"status": "failed", "reason": one_line(error)})
                continue
            kind = "graph" if all(one.graph for one in samples.values()) else "eager"
            times = {way: getattr(one, kind) for way, one in samples.items()}
            ratio = paired_ratio(times["product"], times["dense"])
            found.setdefault(size_class(shape.n, shape.k), {}).setdefault(m, []).append(ratio["value"])
            head |= {"status": "ok", "reason": "", "time_kind": kind}
            sink(head | {f"{way}_s": stat(spent) for way, spent in times.items()} | {"product_over_dense": ratio})
    return found


def places(shapes: Sequence[Shape]) -> list[tuple[Shape, str]]:
    """What to time: one shape of each class first, and of a shape both formats before the next shape."""
    first: dict[str, Shape] = {}
    for shape in shapes:
        first.setdefault(size_class(shape.n, shape.k), shape)
    ordered = [*first.values(), *(s for s in shapes if s not in first.values())]
    return [(shape, method) for shape in ordered for method in FORMATS]


def copies_of(shape: Shape, method: str, watch: Watch) -> list[Fused]:
    """As many copies of a weight as keep the cache cold."""
    made = METHODS[method].quantize(dense_weight(shape, watch.device))
    stored = [{name: t.clone() for name, t in made.stored().items()} for _ in range(watch.copies(made.nbytes))]
    return [Fused(from_config(made.config(), tensors)) for tensors in stored]


def timed(watch: Watch, weights: Sequence[Fused], x: Tensor) -> dict[str, Samples]:
    """Samples of both ways, which go round the copies of the weight."""
    product = OPERATORS[f"{weights[0].family}_matmul"].call

    def by(way: str, weight: Fused) -> Tensor:
        with torch.no_grad(), taking(way):
            y: Tensor = product(x, **weight.arguments)
            return y

    calls = {way: [fixed(by, way, weight) for weight in weights] for way in WAYS}
    for call in (one for each in calls.values() for one in (*each, each[0])):
        call()
    return measure(watch, calls, ROUNDS, ROUND_SECONDS)
