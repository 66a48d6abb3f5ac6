"""Formats around another one: the inputs are changed before its product, or a second product is added to its own.

`inner` multiplies by whatever path is fastest for it, so a new way of preparing x needs no kernel of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quant.core import QuantizedTensor

__all__ = ["Composed", "Scaled"]


@dataclass(frozen=True, eq=False)
class Composed(QuantizedTensor):
    """W x = inner (before x) + beside x, linear in x but for rounding; `inner` [n, k'] has its own format."""

    inner: QuantizedTensor

    stored_parts: ClassVar[dict[str, str]] = {"inner": "inherit"}

    @abstractmethod
    def before(self, x: Tensor) -> Tensor:
        """x [m, k] -> what `inner` multiplies, [m, k'], in the dtype of x."""

    @abstractmethod
    def before_transposed(self, dx: Tensor) -> Tensor:
        """The transpose of `before`, for gradients: [m, k'] -> [m, k]."""

    @property
    def rounds(self) -> bool:
        return self.inner.rounds

    def activations(self, x: Tensor) -> Tensor:
        if self.rounds:
            raise TypeError(
                f"{type(self).__name__} cannot say which x its inner weight rounds: let that one be outside"
            )
        return x

    def beside(self, x: Tensor) -> Tensor | None:
        """What is added to the product, [m, n], in the dtype of x."""
        return None

    def beside_transposed(self, dy: Tensor) -> Tensor | None:
        """dy [m, n] -> what is added to the gradient, [m, k]."""
        return None


@dataclass(frozen=True, eq=False)
class Scaled(Composed, format="scaled"):
    """W = inner.decode() * columns: one factor [1, k] a column, that x is multiplied with (AWQ, SmoothQuant)."""

    columns: Tensor

    stored_parts: ClassVar[dict[str, str]] = {"inner": "inherit", "columns": "scales"}

    def __post_init__(self) -> None:
        if self.inner.shape != self.shape:
            raise ValueError(f"the inner weight must be {list(self.shape)}, got {list(self.inner.shape)}")
        if tuple(self.columns.shape) != (1, self.shape[1]) or not self.columns.dtype.is_floating_point:
            raise ValueError(
                f"columns must be floating [1, {self.shape[1]}], got {self.columns.dtype} {list(self.columns.shape)}"
            )

    def decode(self) -> Tensor:
        return self.inner.decode() * self.columns.float()

    def activations(self, x: Tensor) -> Tensor:
        if not self.rounds:
            return x
        columns = self.columns.to(torch.promote_types(x.dtype, torch.float32))
        return (self.inner.activations(self.before(x)) / columns).to(x.dtype)

    def before(self, x: Tensor) -> Tensor:
        return x * self.columns.to(x.dtype)

    def before_transposed(self, dx: Tensor) -> Tensor:
        return dx * self.columns.to(dx.dtype)
