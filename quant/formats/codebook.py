"""Any table of values: w = levels[code] * scale (+ offset).

One format for every non-uniform method: NF4, FP4, k-means, powers of two, quantiles, clusters. The table is shared by
the tensor ([1, 2**bits]) or by `rows` consecutive rows each ([ceil(n / rows), 2**bits]). A table that is fixed by the
method, not learned from the weight, is counted as a per-tensor constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kernels.packing import unpack
from quant.core import QuantizedTensor
from quant.formats.affine import check_codes, check_side
from quant.grouping import Group, check_group, decode_scale, expand, group_shape

__all__ = ["Codebook", "FixedCodebook"]


@dataclass(frozen=True, eq=False)
class Codebook(QuantizedTensor, format="codebook"):
    """`codes` [n, packed_bytes(k, bits)] uint8; `levels` [tables, L] float, L <= 2**bits; `scale` as in grouping.

    `rows` weights rows share a table (0: one table for the tensor); `scale` may be absent, `group` is then "tensor";
    `offset` [1] float32 is added to every value (double quantization stores scales around their mean).
    """

    codes: Tensor
    levels: Tensor
    scale: Tensor | QuantizedTensor | None
    offset: Tensor | None
    bits: int
    group: Group
    rows: int

    stored_parts: ClassVar[Mapping[str, str]] = {
        "codes": "codes",
        "levels": "levels",
        "scale": "scales",
        "offset": "constants",
    }

    def __post_init__(self) -> None:
        check_group(self.group)
        check_codes(self.codes, self.shape, self.bits)
        tables = -(-self.shape[0] // self.rows) if self.rows else 1
        if self.levels.ndim != 2 or self.levels.shape[0] != tables or not 0 < self.levels.shape[1] <= 1 << self.bits:
            raise ValueError(f"levels must be [{tables}, <= {1 << self.bits}], got {list(self.levels.shape)}")
        if not self.levels.dtype.is_floating_point:
            raise ValueError(f"levels must be floating, got {self.levels.dtype}")
        if self.scale is not None:
            check_side("scale", self.scale, group_shape(self.shape, self.group))
        if self.offset is not None and self.offset.numel() != 1:
            raise ValueError(f"offset must hold one value, got {list(self.offset.shape)}")

    def unpacked(self) -> Tensor:
        """Codes [n, k] uint8."""
        return unpack(self.codes, self.bits, self.shape[1])

    def decode(self) -> Tensor:
        levels = self.levels.float()
        codes = self.unpacked()
        if levels.shape[1] < 1 << self.bits and int(codes.max()) >= levels.shape[1]:
            raise ValueError(f"code {int(codes.max())} has no level: the table holds {levels.shape[1]}")
        if levels.shape[0] == 1:
            w = levels[0].index_select(0, codes.flatten().int()).view(self.shape)
        else:
            table = torch.arange(self.shape[0], device=codes.device) // self.rows
            w = levels.flatten()[table[:, None] * levels.shape[1] + codes]
        if self.scale is not None:
            w = w * expand(decode_scale(self.scale), self.shape, self.group)
        return w if self.offset is None else w + self.offset.float()


@dataclass(frozen=True, eq=False)
class FixedCodebook(Codebook, format="fixed-codebook"):
    """A codebook whose table the method fixes (NF4, E2M1): it is the same for every tensor."""

    stored_parts = {**Codebook.stored_parts, "levels": "constants"}
