"""Unstructured sparsity: one bit a weight says whether it is kept; the kept values lie side by side.

At density d with 16-bit values that is 1 + 16 d bits a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kernels.packing import unpack
from quant.core import QuantizedTensor
from quant.formats.affine import check_codes

__all__ = ["BitMask"]


@dataclass(frozen=True, eq=False)
class BitMask(QuantizedTensor, format="bitmask"):
    """`mask` [n, ceil(k / 8)] uint8, 1 = kept; `values` [1, kept] in row-major order, None when nothing is kept."""

    mask: Tensor
    values: QuantizedTensor | None

    stored_parts = {"mask": "mask", "values": "inherit"}

    def __post_init__(self) -> None:
        check_codes(self.mask, self.shape, 1)
        kept = int(_bytes_on(self.mask.device)[0][self.mask.int()].sum())
        given = (1, 0) if self.values is None else self.values.shape
        if given != (1, kept):
            raise ValueError(f"the mask keeps {kept} weights, values are {list(given)} instead of {[1, kept]}")

    def kept(self) -> Tensor:
        """Which weights are kept, [n, k] bool."""
        return unpack(self.mask, 1, self.shape[1]).bool()

    def decode(self) -> Tensor:
        """Eight weights at a time: a byte of the mask says which of the values after its first one they take."""
        n, k = self.shape
        if self.values is None:
            return torch.zeros(n, k, dtype=torch.float32, device=self.mask.device)
        values = self.values.decode().flatten()
        count, place, kept = _bytes_on(self.mask.device)
        mask = self.mask.flatten().int()
        counts = count.index_select(0, mask)
        before = counts.cumsum(0, dtype=torch.int32 if values.numel() < 2**31 - 8 else torch.int64) - counts
        at = place.index_select(0, mask).view(torch.int8).view(-1, 8) + before[:, None]
        at &= kept.index_select(0, mask).view(torch.int8).view(-1, 8)  # what is not kept takes entry 0
        with_zero = torch.cat([values.new_zeros(1), values])
        return with_zero.index_select(0, at.flatten()).view(n, -1)[:, :k].contiguous()


@lru_cache
def _bytes() -> tuple[Tensor, Tensor, Tensor]:
    """Of each of the 256 bytes: how many bits are set [256] int32; and, as eight int8 lanes seen as one int64, the
    rank of each set bit from 1, the first being the highest, and -1 where the bit is set, else 0."""
    bits = (torch.arange(256)[:, None] >> torch.arange(7, -1, -1)) & 1
    lanes = (bits.cumsum(1) * bits, -bits)
    place, kept = (t.to(torch.int8).contiguous().view(torch.int64).flatten() for t in lanes)
    return bits.sum(1).int(), place, kept


@lru_cache
def _bytes_on(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`_bytes` on `device`, brought there once: a copy from the host cannot be part of a CUDA graph."""
    count, place, kept = (table.to(device) for table in _bytes())
    return count, place, kept
