"""The Triton kernels themselves: every operation of `kernels.operations()`, whatever it is called.

Which kind an operation is follows from its sample inputs: if they grow with the number of rows it is a product, if they
name the dtype to decode to it decodes, else it quantizes. So an operation that is added is timed with no edit here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.gpu.layers import CHECKED_ROWS
from bench.gpu.shapes import Block
from bench.gpu.subjects import DTYPE, Ready, Stock, Subject, fixed, flop, total_bytes
from bench.gpu.timing import Watch
from kernels.op import Op, operations

__all__ = ["Kernel", "op_subjects"]

PROBE = 256  # a side that every format can hold


class Kernel(Subject):
    """One operation by its Triton kernel."""

    level = "op"

    def __init__(self, op: Op) -> None:
        self.op = op
        self.name = op.name

    @cached_property
    def growing(self) -> frozenset[str]:
        """The arguments whose first dimension is the number of rows."""
        two, three = (self.op.sized(m, PROBE, PROBE, torch.float32, "cpu").arguments for m in (2, 3))
        return frozenset(
            name
            for name, value in two.items()
            if isinstance(value, Tensor) and (value.shape[0], three[name].shape[0]) == (2, 3)
        )

    @cached_property
    def operation(self) -> str:
        """One of `bench.gpu.shapes.OPERATIONS`."""
        if self.growing:
            return "matmul"
        example = self.op.sized(2, PROBE, PROBE, torch.float32, "cpu").arguments
        return "dequantize" if "dtype" in example else "quantize"

    def takes(self, block: Block) -> bool:
        return block.operation == self.operation

    def lacks(self, device: str) -> str:
        return "" if device == "cuda" else "a Triton kernel needs a GPU; one that is interpreted is never timed"

    def make(self, block: Block, stock: Stock, watch: Watch) -> Ready:
        shape = block.shape
        made = stock.kept(shape, self.name, lambda: self.op.sized(1, shape.n, shape.k, DTYPE, stock.device).arguments)
        stored = total_bytes({name: v for name, v in made.items() if name not in self.growing})
        copies = [self.filled(made, block, stock, i) for i in range(watch.copies(stored))]
        calls = [fixed(self.op.triton, **arguments) for arguments in copies]
        moved = total_bytes(copies[0], calls[0]())
        return Ready(calls, moved, flop(block), lambda: (self.wrong(copies[0], block), None), lambda: self.op.name)

    def filled(self, made: Mapping[str, Any], block: Block, stock: Stock, i: int) -> dict[str, Any]:
        """A copy of the arguments with `block.m` rows."""
        out = {name: value.clone() if isinstance(value, Tensor) else value for name, value in made.items()}
        for j, name in enumerate(sorted(self.growing)):
            out[name] = stock.normal((block.m, *made[name].shape[1:]), 1000 * j + i)
        return out

    def wrong(self, arguments: Mapping[str, Any], block: Block) -> str | None:
        """None, or how it departs from its float64 reference; of a product the first rows are looked at."""
        out = self.op.triton(**arguments)
        if not block.m:
            return self.op.disagreement(out, arguments)
        few = {n: v[:CHECKED_ROWS] if n in self.growing else v for n, v in arguments.items()}
        return self.op.disagreement(out[:CHECKED_ROWS], few)


def op_subjects() -> list[Subject]:
    """Every operation there is."""
    return [Kernel(op) for op in operations().values()]
