"""What is tuned, in the order of its importance, and how its launches are made.

An item is an operation at a shape and a number of rows; the launches it consists of are made when its turn comes, so
that the list of all items costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bench.gpu.ops import Kernel
from bench.gpu.shapes import SHAPES, TINY_SHAPES, Shape
from bench.gpu.subjects import DTYPE, SCALE
from kernels import tuned
from kernels.op import operations
from kernels.tuning import Launch, recorded
from quant import METHODS
from quant.engines.triton import Fused

__all__ = ["FORMATS", "ROWS", "Item", "Maker", "Work", "dense_weight", "place_of", "plan"]

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


@dataclass(frozen=True)
class Item:
    """One operation at one shape, with `rows` of x (0: it has none): with the weight of `method`, or one of its own."""

    name: str
    shape: Shape
    rows: int = 0
    method: str = ""

    def __str__(self) -> str:
        rows = f"m={self.rows}" if self.rows else ""
        return " ".join(part for part in (self.name, self.method, str(self.shape), rows) if part)


@dataclass(frozen=True)
class Work:
    """A launch to be tuned, and what it is part of."""

    label: str
    launch: Launch


def dense_weight(shape: Shape, device: str) -> Tensor:
    """A random weight [n, k]."""
    draw = torch.Generator(device).manual_seed(shape.n)
    return torch.randn(shape.n, shape.k, dtype=DTYPE, device=device, generator=draw).mul_(SCALE)


def plan(tiny: bool = False) -> list[Item]:
    """Everything there is to tune, what the targets are set at first.

    At the first shape all products, then those of the first two formats at every other shape, then what is left.
    """
    first, *others = TINY_SHAPES if tiny else SHAPES
    called = {f"{family}_{kind}" for family in ("codebook", "affine") for kind in KINDS}
    rest = [name for name in operations() if name not in called]
    growing = [name for name in rest if Kernel(operations()[name]).growing]

    def products(shape: Shape, formats: Sequence[str]) -> list[Item]:
        return [Item(f"{_family(f)}_matmul", shape, m, f) for m in ROWS for f in formats]

    def alone(shape: Shape) -> list[Item]:
        return [Item(name, shape, m) for m in ROWS for name in growing]

    def remaining(shape: Shape) -> list[Item]:
        out = [Item(f"{_family(f)}_dequantize", shape, 0, f) for f in FORMATS]
        out += [Item(f"{_family(f)}_grad", shape, GRAD_ROWS, f) for f in FORMATS]
        out += [Item(f"{_family(f)}_lora", shape, m, f) for m in ROWS[1:] for f in FORMATS]
        return out + [Item(name, shape) for name in rest if name not in growing]

    items = [*products(first, FORMATS[:2]), *alone(first), *products(first, FORMATS[2:])]
    items += [item for shape in others for item in products(shape, FORMATS[:2])]
    items += remaining(first)
    for shape in others:
        items += [*alone(shape), *products(shape, FORMATS[2:]), *remaining(shape)]
    return [item for item in items if item.name in operations()]


class Maker:
    """Makes the launches of items, each class of shape once; the weights of the shape at hand are kept."""

    def __init__(self, device: str, seen: Iterable[str] = ()) -> None:
        self.device = device
        self._seen = set(seen)
        self._weights: dict[tuple[Shape, str], Fused] = {}

    def __call__(self, item: Item) -> list[Work]:
        """The launches of an item whose class was not seen before."""
        op = operations()[item.name]
        out = []
        for launch in recorded(op.triton, self.arguments(item))[1]:
            place = place_of(launch)
            if place not in self._seen:
                self._seen.add(place)
                out.append(Work(str(item), launch))
        return out

    def arguments(self, item: Item) -> dict[str, Any]:
        """What the operation of an item is called with."""
        n, k = item.shape.n, item.shape.k
        if not item.method:
            return dict(operations()[item.name].sized(max(item.rows, 1), n, k, DTYPE, self.device).arguments)
        own = self.weight(item.shape, item.method).arguments
        kind = item.name.rpartition("_")[2]
        if kind == "dequantize":
            return {"shape": (n, k), "dtype": DTYPE, **own}
        if kind == "grad":
            return {"dy": self._zeros(item.rows, n), "k": k, **own}
        update = {"inner": self._zeros(item.rows, RANK), "b": self._zeros(n, RANK)} if kind == "lora" else {}
        return {"x": self._zeros(item.rows, k), **update, **own}

    def weight(self, shape: Shape, method: str) -> Fused:
        """A weight of this shape in this format."""
        if any(kept != shape for kept, _ in self._weights):
            self._weights.clear()
        if (shape, method) not in self._weights:
            made = METHODS[method].quantize(dense_weight(shape, self.device))
            self._weights[shape, method] = Fused(made)
        return self._weights[shape, method]

    def _zeros(self, *size: int) -> Tensor:
        return torch.zeros(size, dtype=DTYPE, device=self.device)


@cache
def _family(method: str) -> str:
    return Fused(METHODS[method].quantize(dense_weight(TINY_SHAPES[0], "cpu"))).family


def place_of(launch: Launch) -> str:
    """The entry of the table that a launch reads."""
    kernel = launch.kernel
    return f"{kernel.fn.__name__}-{tuned.shape_class(launch.arguments, kernel.key)}"
