"""N:M sparsity: of every m consecutive weights of a row, n are kept, and an index of ceil(log2 m) bits says where.

2:4 with 16-bit values takes (16 + 2) / 2 = 9 bits a weight. The last group of a row may be short: it stores n values
like every other, those past the row's end being zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kernels.packing import unpack
from quant.core import QuantizedTensor
from quant.formats.affine import check_codes

__all__ = ["NofM"]


@dataclass(frozen=True, eq=False)
class NofM(QuantizedTensor, format="n-of-m"):
    """`indices` packed [rows, groups * keep], ascending in each group of `group`; `values` [rows, groups * keep]."""

    indices: Tensor
    values: QuantizedTensor
    keep: int
    group: int

    stored_parts = {"indices": "mask", "values": "inherit"}

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.group or not 2 <= self.group <= 256:
            raise ValueError(f"cannot keep {self.keep} of {self.group}: need 1 <= keep <= group, group 2..256")
        want = (self.shape[0], self.groups * self.keep)
        check_codes(self.indices, want, self.index_bits)
        if self.values.shape != want:
            raise ValueError(f"values must be {list(want)}, got {list(self.values.shape)}")

    @property
    def groups(self) -> int:
        """Groups in a row, a short last one included."""
        return -(-self.shape[1] // self.group)

    @property
    def index_bits(self) -> int:
        """Bits of the index of a kept value in its group."""
        return (self.group - 1).bit_length()

    def positions(self) -> Tensor:
        """Indices in the groups, [rows, groups, keep] uint8."""
        flat = unpack(self.indices, self.index_bits, self.groups * self.keep)
        return flat.reshape(-1, self.groups, self.keep)

    def decode(self) -> Tensor:
        values = self.values.decode().reshape(-1, self.groups, self.keep)
        w = values.new_zeros(self.shape[0], self.groups, self.group)
        return w.scatter_(2, self.positions().long(), values).flatten(1)[:, : self.shape[1]].contiguous()
