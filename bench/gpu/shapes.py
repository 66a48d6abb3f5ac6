"""Which layers are timed: the linear layers of Llama-3-8B and 70B (Dubey et al. 2024, arXiv 2407.21783), and squares.

A *block* is one operation on one shape at one number of rows: everything that competes there is timed in turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["OPERATIONS", "QUICK_ROWS", "ROWS", "SHAPES", "TINY_ROWS", "TINY_SHAPES", "Block", "Shape", "blocks"]

OPERATIONS = ("matmul", "dequantize", "quantize")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
QUICK_ROWS = (1, 16, 64, 256, 1024)
TINY_ROWS = (1, 4)


@dataclass(frozen=True, order=True)
class Shape:
    """A weight [n, k] and the layer it belongs to."""

    n: int
    k: int
    layer: str

    def __str__(self) -> str:
        return f"{self.n}x{self.k}"


SHAPES = (
    Shape(8192, 8192, "70B q and o, square"),
    Shape(28672, 8192, "70B gate and up"),
    Shape(4096, 4096, "8B q and o, square"),
    Shape(14336, 4096, "8B gate and up"),
    Shape(4096, 14336, "8B down"),
    Shape(1024, 4096, "8B k and v"),
    Shape(8192, 28672, "70B down"),
    Shape(1024, 8192, "70B k and v"),
)
TINY_SHAPES = (Shape(128, 256, "tiny"), Shape(64, 128, "tiny"))


@dataclass(frozen=True)
class Block:
    """One operation on a weight of one shape, with x [m, k] (m is 0 where there is no x)."""

    operation: str
    shape: Shape
    m: int = 0

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, got {self.operation!r}")
        if (self.m > 0) != (self.operation == "matmul"):
            raise ValueError(f"a matmul has rows and nothing else has, got m = {self.m} for {self.operation}")

    def __str__(self) -> str:
        rows = f" m={self.m}" if self.m else ""
        return f"{self.operation} {self.shape}{rows}"


def blocks(shapes: Sequence[Shape] = SHAPES, rows: Iterable[int] = ROWS, quick: bool = False) -> list[Block]:
    """Every block, shape by shape: in each the rows that targets are set at, decoding and quantizing, the other rows.

    `quick` keeps the first three shapes and the rows of `QUICK_ROWS`.
    """
    given = list(rows)
    chosen = [m for m in given if m in QUICK_ROWS] if quick else given
    first = [m for m in chosen if m in QUICK_ROWS]
    out: list[Block] = []
    for shape in shapes[:3] if quick else shapes:
        out += [Block("matmul", shape, m) for m in first]
        out += [Block("dequantize", shape), Block("quantize", shape)]
        out += [Block("matmul", shape, m) for m in chosen if m not in first]
    return out
