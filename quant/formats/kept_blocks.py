"""Block sparsity: rectangles of weights are kept or zero; one bit a block, and the kept blocks one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packing import unpack
from quant.core import QuantizedTensor
from quant.formats.affine import check_codes

__all__ = ["KeptBlocks", "cut", "joined"]


@dataclass(frozen=True, eq=False)
class KeptBlocks(QuantizedTensor, format="kept-blocks"):
    """`mask` [n / rows, ceil(k / columns / 8)] uint8, 1 = kept; `values` [kept, rows * columns], None when none is.

    A block is stored row by row. Blocks that reach over the weight's edge hold zeros there.
    """

    mask: Tensor
    values: QuantizedTensor | None
    rows: int
    columns: int

    stored_parts = {"mask": "mask", "values": "inherit"}

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"a block must have rows and columns, got {self.rows} x {self.columns}")
        check_codes(self.mask, self.blocks, 1)
        kept, size = int(self.kept().sum()), self.rows * self.columns
        given = (0, size) if self.values is None else self.values.shape
        if given != (kept, size):
            raise ValueError(f"the mask keeps {kept} blocks of {size} weights, values are {list(given)}")

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks down and across."""
        return -(-self.shape[0] // self.rows), -(-self.shape[1] // self.columns)

    def kept(self) -> Tensor:
        """Which blocks are kept, [down, across] bool."""
        return unpack(self.mask, 1, self.blocks[1]).bool()

    def decode(self) -> Tensor:
        cells = torch.zeros(*self.blocks, self.rows * self.columns, dtype=torch.float32, device=self.mask.device)
        if self.values is not None:
            cells[self.kept()] = self.values.decode()
        return joined(cells, self.shape, self.rows, self.columns)


def cut(weight: Tensor, rows: int, columns: int) -> Tensor:
    """[n, k] -> [down, across, rows * columns], filled up with zeros at the edges."""
    n, k = weight.shape
    filled = torch.nn.functional.pad(weight, (0, -k % columns, 0, -n % rows))
    down, across = filled.shape[0] // rows, filled.shape[1] // columns
    return filled.view(down, rows, across, columns).transpose(1, 2).reshape(down, across, rows * columns)


def joined(cells: Tensor, shape: tuple[int, int], rows: int, columns: int) -> Tensor:
    """The inverse of `cut`: [down, across, rows * columns] -> [n, k]."""
    down, across, _ = cells.shape
    whole = cells.view(down, across, rows, columns).transpose(1, 2).reshape(down * rows, across * columns)
    return whole[: shape[0], : shape[1]].contiguous()
