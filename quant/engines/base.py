"""What an engine is: it says which weights it takes, and makes one ready to multiply with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from quant.core import QuantizedTensor

__all__ = ["ENGINES", "Engine", "Prepared", "Traced"]


class Prepared(ABC):
    """A weight [n, k] made ready by one engine for one compute dtype."""

    nbytes: int = 0  # bytes of what was derived from the stored tensors and is kept

    @abstractmethod
    def matmul(self, x: Tensor) -> Tensor:
        """x [m, k] in the compute dtype -> x @ W.T [m, n] in that dtype."""

    def transposed(self, dy: Tensor) -> Tensor:
        """dy [m, n] in the compute dtype -> dy @ W [m, k] in that dtype: the gradient of x."""
        raise TypeError(f"{type(self).__name__} multiplies forward only")


class Traced(Prepared):
    """A weight whose product is made of operators that torch can trace, compile and differentiate in x."""

    @abstractmethod
    def transposed(self, dy: Tensor) -> Tensor:
        """dy [m, n] in the compute dtype -> dy @ W [m, k] in that dtype: the gradient of x."""

    def adapted(self, x: Tensor, inner: Tensor, b: Tensor) -> Tensor:
        """x @ W.T + inner [m, r] @ b [n, r].T, differentiable in all three."""
        y = self.matmul(x)
        return y + inner.to(y.dtype) @ b.T.to(y.dtype)


class Engine(ABC):
    """One way to multiply with a quantized weight."""

    name: ClassVar[str]

    @abstractmethod
    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        """Why it cannot multiply `weight` with an x of `dtype` on `device`; empty when it can."""

    @abstractmethod
    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Prepared:
        """`weight` ready to multiply with; call only when `refuses` is empty."""


ENGINES: dict[str, Engine] = {}
