"""A weight whose rows were rotated before it was stored: W = inner R^T, R = D H, D a diagonal of signs.

H is the Walsh-Hadamard transform of every `group` consecutive columns (`quant.hadamard`), symmetric and orthogonal, so
W x = inner (x R)^T: the inputs take one fast transform and the inner weight multiplies as it is stored. Scales and
outliers inside are those of the rotated weight.
Sources: Chee et al. 2023 (QuIP), arXiv 2307.13304; Malinovskii et al. 2024 (HIGGS), arXiv 2411.17525.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kernels.packing import unpack
from quant.formats.affine import check_codes
from quant.formats.composed import Composed
from quant.hadamard import transformed

__all__ = ["Rotated"]


@dataclass(frozen=True, eq=False)
class Rotated(Composed, format="rotated"):
    """`signs` [1, ceil(k / 8)] uint8, a set bit for a column that is negated; `group` a power of two that divides k."""

    signs: Tensor
    group: int

    stored_parts: ClassVar[dict[str, str]] = {"inner": "inherit", "signs": "scales"}

    def __post_init__(self) -> None:
        if self.inner.shape != self.shape:
            raise ValueError(f"the inner weight must be {list(self.shape)}, got {list(self.inner.shape)}")
        if self.group < 1 or self.group & (self.group - 1) or self.shape[1] % self.group:
            raise ValueError(f"group must be a power of two that divides {self.shape[1]}, got {self.group}")
        check_codes(self.signs, (1, self.shape[1]), 1)

    def diagonal(self, dtype: torch.dtype) -> Tensor:
        """The signs as factors -1 and 1, [1, k]."""
        return 1 - 2 * unpack(self.signs, 1, self.shape[1]).to(dtype)

    def decode(self) -> Tensor:
        return self.before_transposed(self.inner.decode())

    def before(self, x: Tensor) -> Tensor:
        return transformed(x * self.diagonal(x.dtype), self.group)

    def before_transposed(self, dx: Tensor) -> Tensor:
        return transformed(dx, self.group) * self.diagonal(dx.dtype)
