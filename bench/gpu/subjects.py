"""What is timed, and how one of it is made ready for a block: the base of every subject, and the dense baselines.

A subject is made with several copies of its inputs (see `bench.gpu.timing`) and a check: an operation that does not
compute what it should is not timed.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bench.gpu.shapes import Block, Shape
from bench.gpu.timing import Watch

__all__ = ["LEVELS", "Baseline", "Ready", "Stock", "Subject", "fixed", "total_bytes"]

LEVELS = ("baseline", "layer", "op", "rival")
DTYPE = torch.bfloat16
SCALE = 0.02  # of the weights, about that of a trained model


@dataclass(frozen=True)
class Ready:
    """A subject made for one block.

    `calls` do the same on copies of the inputs; `moved_bytes` is what one must at least read and write, `flop` what it
    must compute (0: nothing counted). `check()` gives (None or what is wrong, relative error or None);
    `implementation()` names the path that ran.
    """

    calls: Sequence[Callable[[], Any]]
    moved_bytes: int
    flop: int
    check: Callable[[], tuple[str | None, float | None]]
    implementation: Callable[[], str]


class Stock:
    """The weight of the shape at hand and what was made of it; all of it is dropped when another shape comes."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._shape: Shape | None = None
        self._kept: dict[Any, Any] = {}

    def kept(self, shape: Shape, key: Any, make: Callable[[], Any]) -> Any:
        """What `make()` gave for `key` at this shape."""
        if shape != self._shape:
            self._kept.clear()
            self._shape = shape
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def weight(self, shape: Shape) -> Tensor:
        """The dense weight [n, k], normal, bfloat16."""

        def make() -> Tensor:
            return self.normal((shape.n, shape.k), shape.n + shape.k).mul_(SCALE)

        weight: Tensor = self.kept(shape, "weight", make)
        return weight

    def normal(self, size: tuple[int, ...], seed: int) -> Tensor:
        """Standard normal numbers in bfloat16, decided by the seed on each kind of device."""
        draw = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(size, dtype=DTYPE, device=self.device, generator=draw)

    def inputs(self, block: Block, copies: int) -> list[Tensor]:
        """`copies` different x [m, k]."""
        return [self.normal((block.m, block.shape.k), seed) for seed in range(copies)]

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()
        self._shape = None


class Subject(ABC):
    """One competitor. `name` is unique; `level` is one of `LEVELS`; `method` the format it stands for."""

    level: ClassVar[str]
    name: str
    method: str = ""

    @abstractmethod
    def takes(self, block: Block) -> bool:
        """Whether it has something to do in this block."""

    def lacks(self, device: str) -> str:
        """Why it cannot run here, or an empty string."""
        return ""

    @abstractmethod
    def make(self, block: Block, stock: Stock, watch: Watch) -> Ready:
        """Make it ready, on the device of `stock`."""


class Baseline(Subject):
    """The dense layer in bfloat16 (on a GPU: cuBLAS); for decoding and quantizing, a copy of the dense weight."""

    level = "baseline"
    name = "dense-bf16"
    method = "bf16"

    def takes(self, block: Block) -> bool:
        return True

    def make(self, block: Block, stock: Stock, watch: Watch) -> Ready:
        weight = stock.weight(block.shape)
        size = weight.nbytes * (1 if block.m else 2)
        weights = [weight, *(weight.clone() for _ in range(watch.copies(size) - 1))]
        if block.operation != "matmul":
            target = torch.empty_like(weight)
            return Ready([fixed(target.copy_, w) for w in weights], size, 0, right, lambda: "Tensor.copy_")
        xs = stock.inputs(block, len(weights))
        calls = [fixed(torch.nn.functional.linear, x, w) for x, w in zip(xs, weights, strict=True)]
        moved = weight.nbytes + xs[0].nbytes + block.m * block.shape.n * weight.element_size()
        return Ready(calls, moved, flop(block), right, lambda: "torch.nn.functional.linear")


def fixed(function: Callable[..., Any], *arguments: Any, **named: Any) -> Callable[[], Any]:
    """A call without arguments: what a loop's lambda would get wrong."""

    def call() -> Any:
        return function(*arguments, **named)

    return call


def flop(block: Block) -> int:
    """Multiplications and additions of a product, 0 for other operations."""
    return 2 * block.m * block.shape.n * block.shape.k


def right() -> tuple[str | None, float | None]:
    """The check of what is right by definition."""
    return None, None


def total_bytes(*values: Any) -> int:
    """Bytes of all the tensors in `values`, those in containers and in fields of dataclasses included."""
    total = 0
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            total += leaf.numel() * leaf.element_size()
        elif dataclasses.is_dataclass(leaf):
            total += total_bytes(*(getattr(leaf, field.name) for field in dataclasses.fields(leaf)))
    return total
