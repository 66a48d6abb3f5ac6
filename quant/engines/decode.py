"""Rows of an affine or codebook weight, decoded by table look-up into a reused workspace."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.packing import unpack
from quant.formats import Affine, Codebook
from quant.grouping import decode_scale, expand

__all__ = ["ROWS", "RowDecoder"]

ROWS = 256  # rows a tile


class RowDecoder:
    """Decodes rows [start, stop) of `weight` into `dtype`, equal to `weight.decode()` in float32."""

    def __init__(self, weight: Affine | Codebook, dtype: torch.dtype) -> None:
        self.weight, self.shape = weight, weight.shape
        self.dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        self.scale = None if weight.scale is None else decode_scale(weight.scale)
        self.zero = decode_scale(weight.zero) if isinstance(weight, Affine) and weight.zero is not None else None
        self.nbytes = sum(t.nbytes for t in (self.scale, self.zero) if t is not None)

    def rows(self, start: int, stop: int) -> Tensor:
        weight, k = self.weight, self.shape[1]
        codes = unpack(weight.codes[start:stop], weight.bits, k)
        shape = (stop - start, k)
        if isinstance(weight, Affine):
            w = codes.float()
            w -= (
                1 << (weight.bits - 1)
                if self.zero is None
                else expand(_part(self.zero, start, stop), shape, weight.group)
            )
        else:
            levels = weight.levels.float()
            if levels.shape[0] == 1:
                w = levels[0].index_select(0, codes.flatten().int()).view(shape)
            else:
                table = torch.arange(start, stop) // weight.rows
                w = levels.flatten()[table[:, None] * levels.shape[1] + codes]
        if self.scale is not None:
            w *= expand(_part(self.scale, start, stop), shape, weight.group)
        if isinstance(weight, Codebook) and weight.offset is not None:
            w += weight.offset.float()
        return w.to(self.dtype)


def _part(side: Tensor, start: int, stop: int) -> Tensor:
    return side if side.shape[0] == 1 else side[start:stop]
