"""Formats around another one: their inner weight is multiplied by the engine that "auto" takes for it."""

from __future__ import annotations

import torch
from torch import Tensor

from quant.core import QuantizedTensor
from quant.engines.base import ENGINES, Engine, Prepared
from quant.engines.choice import choose
from quant.formats.composed import Composed

__all__ = ["Around"]


class _Around(Prepared):
    def __init__(self, weight: Composed) -> None:
        self.weight = weight
        self.made: dict[tuple[str, torch.dtype], Prepared] = {}

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes that the inner engines keep."""
        return sum(p.nbytes for p in self.made.values())

    def _inner(self, x: Tensor, name: str) -> Prepared:
        if (name, x.dtype) not in self.made:
            self.made[name, x.dtype] = ENGINES[name].prepare(self.weight.inner, x.dtype)
        return self.made[name, x.dtype]

    def matmul(self, x: Tensor) -> Tensor:
        seen = self.weight.before(x)
        name = choose("auto", self.weight.inner, x.dtype, x.device, x.shape[0])
        y = self._inner(seen, name).matmul(seen)
        more = self.weight.beside(x)
        return y if more is None else y + more

    def transposed(self, dy: Tensor) -> Tensor:
        inner = self.weight.inner
        able = next(n for n in ("around", "triton", "tiled") if not ENGINES[n].refuses(inner, dy.dtype, dy.device))
        dx = self.weight.before_transposed(self._inner(dy, able).transposed(dy))
        more = self.weight.beside_transposed(dy)
        return dx if more is None else dx + more


class Around(Engine):
    """Weights that are stored around another one, see `quant.formats.composed`; on every device."""

    name = "around"

    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        return "" if isinstance(weight, Composed) else "it takes weights that are stored around another one"

    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Prepared:
        assert isinstance(weight, Composed)
        return _Around(weight)
