"""Structured sparsity: whole rows (output channels) are kept or zero; one bit a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packing import unpack
from quant.core import QuantizedTensor
from quant.formats.affine import check_codes

__all__ = ["KeptRows"]


@dataclass(frozen=True, eq=False)
class KeptRows(QuantizedTensor, format="kept-rows"):
    """`mask` [1, ceil(n / 8)] uint8, 1 = kept; `values` [kept, k], None when no row is kept."""

    mask: Tensor
    values: QuantizedTensor | None

    stored_parts = {"mask": "mask", "values": "inherit"}

    def __post_init__(self) -> None:
        check_codes(self.mask, (1, self.shape[0]), 1)
        kept = int(self.kept().sum())
        if (kept, self.shape[1]) != (self.values.shape if self.values is not None else (0, self.shape[1])):
            given = None if self.values is None else list(self.values.shape)
            raise ValueError(f"the mask keeps {kept} rows of {self.shape[1]}, values are {given}")

    def kept(self) -> Tensor:
        """Which rows are kept, [n] bool."""
        return unpack(self.mask, 1, self.shape[0])[0].bool()

    def decode(self) -> Tensor:
        w = torch.zeros(self.shape, dtype=torch.float32, device=self.mask.device)
        if self.values is not None:
            w[self.kept()] = self.values.decode()
        return w
