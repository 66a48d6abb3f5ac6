"""The fused Triton kernels of `kernels`, for weights on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quant.core import QuantizedTensor
from quant.engines.base import Engine, Prepared
from quant.engines.rows import as_rows
from quant.formats import Affine, Codebook
from quant.grouping import decode_scale

__all__ = ["Triton"]


class _Affine(Prepared):
    def __init__(self, weight: Affine, kernel: Any) -> None:
        self.weight, self.kernel = weight, kernel
        self.scale = decode_scale(weight.scale)
        self.zero = None if weight.zero is None else decode_scale(weight.zero)
        self.nbytes = _derived(weight, "scale", self.scale) + _derived(weight, "zero", self.zero)

    def matmul(self, x: Tensor) -> Tensor:
        w = self.weight
        y: Tensor = self.kernel(x, w.codes, self.scale, self.zero, bits=w.bits, group=w.group)
        return y


class _Codebook(Prepared):
    def __init__(self, weight: Codebook, kernel: Any) -> None:
        self.weight, self.kernel = weight, kernel
        self.scale = None if weight.scale is None else decode_scale(weight.scale)
        self.nbytes = _derived(weight, "scale", self.scale)

    def matmul(self, x: Tensor) -> Tensor:
        w = self.weight
        y: Tensor = self.kernel(
            x, w.codes, w.levels, self.scale, shape=w.shape, bits=w.bits, group=w.group, rows=w.rows
        )
        if w.offset is not None:
            y = y + x.sum(-1, keepdim=True) * w.offset.to(x.dtype)
        return y


def _derived(weight: QuantizedTensor, name: str, value: Tensor | None) -> int:
    return 0 if value is None or value is getattr(weight, name) else value.nbytes


class Triton(Engine):
    """Affine and codebook weights on a CUDA or ROCm device."""

    name = "triton"

    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        if device.type != "cuda":
            return f"it runs on a GPU, the weight is on {device}"
        rows = as_rows(weight)
        if not isinstance(rows, Affine | Codebook):
            return "it takes affine and codebook weights"
        try:
            _kernel(rows)
        except ImportError as error:
            return f"its kernel cannot be imported: {error}"
        return ""

    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Prepared:
        rows = as_rows(weight)
        kernel = _kernel(rows)
        return _Affine(rows, kernel) if isinstance(rows, Affine) else _Codebook(rows, kernel)  # type: ignore[arg-type]


def _kernel(weight: QuantizedTensor) -> Any:
    if isinstance(weight, Affine):
        from kernels.affine import affine_matmul

        return affine_matmul
    from kernels.codebook import codebook_matmul

    return codebook_matmul
