"""Block-sparse weights on the kernels: mask and kept blocks as they are stored, with the counts that lead to them.

Before each byte of the mask, so for eight blocks, four bytes say how many blocks are kept before it. Values are read as
they are stored, floating or coded; only what no kernel reads (see `quant.engines.arguments.kept_values`) is decoded
once to float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quant.engines.arguments import kept_values, plain
from quant.engines.base import Traced
from quant.formats.kept_blocks import KeptBlocks

__all__ = ["Blocks"]


class Blocks(Traced):
    """A block-sparse weight [n, k] as the arguments of its kernels."""

    def __init__(self, weight: KeptBlocks) -> None:
        from kernels.sparse_starts import mask_starts

        self.shape = weight.shape
        block = (weight.rows, weight.columns)
        starts = mask_starts(weight.mask, weight.blocks[1], 8)
        if weight.values is None:
            nothing = torch.empty(0, block[0] * block[1], dtype=torch.float16, device=weight.mask.device)
            value, more = plain(nothing), 0
        else:
            value, more = kept_values(weight.values)
        self.arguments: dict[str, Any] = {"mask": weight.mask, "starts": starts, **value, "block": block}
        self.nbytes = starts.nbytes + more

    def matmul(self, x: Tensor) -> Tensor:
        from kernels.dispatch import OPERATORS

        y: Tensor = OPERATORS["blocks_matmul"].call(x, n=self.shape[0], **self.arguments)
        return y

    def transposed(self, dy: Tensor) -> Tensor:
        from kernels.dispatch import OPERATORS

        dx: Tensor = OPERATORS["blocks_grad"].call(dy, k=self.shape[1], **self.arguments)
        return dx
