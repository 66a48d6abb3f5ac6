"""A weight stored under another shape: flat blocks that cross rows (bitsandbytes' layout), scales seen as one row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quant.core import QuantizedTensor

__all__ = ["Reshaped"]


@dataclass(frozen=True, eq=False)
class Reshaped(QuantizedTensor, format="reshaped"):
    """`inner` stands for the same n * k values, in row-major order, under another shape (usually [1, n * k])."""

    inner: QuantizedTensor

    stored_parts = {"inner": "inherit"}

    def __post_init__(self) -> None:
        if self.inner.numel != self.numel:
            raise ValueError(f"cannot see {self.inner.shape} as {self.shape}: {self.inner.numel} values")

    def decode(self) -> Tensor:
        return self.inner.decode().reshape(self.shape)
