"""The weight as it is, in a floating dtype: the baseline, and the kept values of a pruned weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quant.core import QuantizedTensor

__all__ = ["Dense"]


@dataclass(frozen=True, eq=False)
class Dense(QuantizedTensor, format="dense"):
    """`values` [n, k] in the dtype in which they are stored."""

    values: Tensor

    stored_parts = {"values": "unquantized"}

    def __post_init__(self) -> None:
        if tuple(self.values.shape) != self.shape or not self.values.dtype.is_floating_point:
            raise ValueError(f"dense values must be floating {self.shape}, got {self.values.dtype} {self.values.shape}")

    def decode(self) -> Tensor:
        return self.values.float()
