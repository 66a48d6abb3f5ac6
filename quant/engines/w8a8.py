"""8-bit weights with x rounded to 8 bits, multiplied as whole numbers by the kernel `kernels.w8a8`, on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from quant.core import QuantizedTensor
from quant.engines.base import Engine, Prepared
from quant.engines.triton import DTYPES
from quant.formats import Affine, RoundedInputs
from quant.grouping import decode_scale

__all__ = ["W8A8"]


class _Whole(Prepared):
    """Multiplies forward only: the gradient is taken with what x was rounded for (see `engines.composed`)."""

    def __init__(self, weight: Affine) -> None:
        self.weight = weight
        self.scale = decode_scale(weight.scale)
        self.nbytes = 0 if self.scale is weight.scale else self.scale.nbytes

    def matmul(self, x: Tensor) -> Tensor:
        from kernels.dispatch import OPERATORS

        w = self.weight
        y: Tensor = OPERATORS["w8a8_matmul"].call(x, codes=w.codes, scale=self.scale, group=w.group)
        return y


class W8A8(Engine):
    """Symmetric 8-bit affine weights behind `RoundedInputs` of 8 bits, on a CUDA or ROCm device."""

    name = "w8a8"

    def serves(self, device: torch.device) -> bool:
        """Whether it runs on `device` at all."""
        return device.type == "cuda"

    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        if not self.serves(device):
            return f"it runs on a GPU, the weight is on {device}"
        if dtype not in DTYPES:
            return f"it computes in float32, float16 and bfloat16, not in {dtype}"
        inner = weight.inner if isinstance(weight, RoundedInputs) and weight.bits == 8 else None
        if not isinstance(inner, Affine) or inner.bits != 8 or inner.zero is not None:
            return "it takes symmetric 8-bit weights whose x is rounded to 8 bits"
        try:
            import kernels.dispatch  # noqa: F401
        except ImportError as error:
            return f"its kernel cannot be imported: {error}"
        return ""

    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Prepared:
        assert isinstance(weight, RoundedInputs)
        assert isinstance(weight.inner, Affine)
        return _Whole(weight.inner)
