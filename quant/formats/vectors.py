"""Vector codes: consecutive weights of a row share a code, w[p i .. p i + p - 1] = levels[code i] * scale.

At 4 bits a code of two weights that is 2 bits a weight. A row that is no multiple of p long has a last code of which
the surplus values are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kernels.packing import unpack
from quant.core import QuantizedTensor
from quant.formats.affine import check_codes, check_side
from quant.grouping import Group, check_group, decode_scale, expand, group_shape

__all__ = ["Vectors"]


@dataclass(frozen=True, eq=False)
class Vectors(QuantizedTensor, format="vectors"):
    """`codes` [n, packed_bytes(ceil(k / p), vector_bits)] uint8; `levels` [L, p] floating, L <= 2**vector_bits.

    `scale` as in grouping. The table is fixed by the method and counted as a per-tensor constant.
    """

    codes: Tensor
    levels: Tensor
    scale: Tensor | QuantizedTensor
    vector_bits: int
    group: Group

    stored_parts: ClassVar[dict[str, str]] = {"codes": "codes", "levels": "constants", "scale": "scales"}

    def __post_init__(self) -> None:
        check_group(self.group)
        levels = self.levels
        if levels.ndim != 2 or not 0 < levels.shape[0] <= 1 << self.vector_bits or not levels.dtype.is_floating_point:
            raise ValueError(
                f"levels must be floating [<= {1 << self.vector_bits}, p], got {levels.dtype} {list(levels.shape)}"
            )
        check_codes(self.codes, (self.shape[0], self.vectors), self.vector_bits)
        check_side("scale", self.scale, group_shape(self.shape, self.group))

    @property
    def vectors(self) -> int:
        """Codes in a row."""
        return -(-self.shape[1] // self.levels.shape[1])

    def decode(self) -> Tensor:
        codes = unpack(self.codes, self.vector_bits, self.vectors)
        if len(self.levels) < 1 << self.vector_bits and int(codes.max()) >= len(self.levels):
            raise ValueError(f"code {int(codes.max())} has no level: the table holds {len(self.levels)}")
        w = self.levels.float().index_select(0, codes.flatten().int()).view(self.shape[0], -1)[:, : self.shape[1]]
        return w * expand(decode_scale(self.scale), self.shape, self.group).to(torch.float32)
