"""Unstructured sparsity: one bit a weight says whether it is kept; the kept values lie side by side.

At density d with 16-bit values that is 1 + 16 d bits a weight.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        kept, given = int(self.kept().sum()), (1, 0) if self.values is None else self.values.shape
        if given != (1, kept):
            raise ValueError(f"the mask keeps {kept} weights, values are {list(given)} instead of {[1, kept]}")

    def kept(self) -> Tensor:
        """Which weights are kept, [n, k] bool."""
        return unpack(self.mask, 1, self.shape[1]).bool()

    def decode(self) -> Tensor:
        w = torch.zeros(self.shape, dtype=torch.float32, device=self.mask.device)
        if self.values is not None:
            w[self.kept()] = self.values.decode().flatten()
        return w
