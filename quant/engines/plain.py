"""The two engines that take every format: dequantize at each call, or once and keep the dense copy."""

from __future__ import annotations

import torch
from torch import Tensor

from quant import formats
from quant.core import QuantizedTensor
from quant.engines.base import Engine, Prepared

__all__ = ["Dense", "Dequantized", "Reference"]


def whole(weight: QuantizedTensor, dtype: torch.dtype) -> Tensor:
    """The dense weight in `dtype`; the stored values themselves where they are that already."""
    return weight.values.to(dtype) if isinstance(weight, formats.Dense) else weight.dequantize(dtype)


class Dequantized(Prepared):
    """Holds nothing beside the weight."""

    def __init__(self, weight: QuantizedTensor) -> None:
        self.weight = weight

    def matmul(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(self.weight.activations(x), whole(self.weight, x.dtype))

    def transposed(self, dy: Tensor) -> Tensor:
        return dy @ whole(self.weight, dy.dtype)


class _Kept(Prepared):
    def __init__(self, weight: QuantizedTensor, dense: Tensor) -> None:
        self.weight, self.dense = weight, dense
        self.nbytes = dense.nbytes

    def matmul(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(self.weight.activations(x), self.dense)

    def transposed(self, dy: Tensor) -> Tensor:
        return dy @ self.dense


class Reference(Engine):
    """Dequantize the whole weight at every call: the definition, and the slowest."""

    name = "reference"

    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        return ""

    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Prepared:
        return Dequantized(weight)


class Dense(Engine):
    """Dequantize once and keep the dense copy: the speed of the unquantized layer, and more than its memory."""

    name = "dense"

    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        return ""

    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Prepared:
        return _Kept(weight, whole(weight, dtype).contiguous())
