"""PyTorch's own packed CPU kernels: 4-bit affine groups, 8-bit channels, both with bfloat16 activations.

`aten::_weight_int4pack_mm_for_cpu` computes w = (code - 8) * scale + shift, so a zero point becomes
shift = (8 - zero) * scale. `aten::_weight_int8pack_mm` computes w = code * scale with one scale a row. Both are fast
only with bfloat16 x (float32 x takes a scalar loop), so x is cast to it, and scales are rounded to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.core import QuantizedTensor
from quant.engines.base import Engine, Prepared
from quant.engines.rows import as_rows
from quant.formats import Affine
from quant.grouping import decode_scale

__all__ = ["Int4Pack", "Int8Pack"]

GROUPS = (32, 64, 128, 256)


class _Int4(Prepared):
    def __init__(self, weight: Affine) -> None:
        scale = decode_scale(weight.scale)
        zero = 8.0 if weight.zero is None else decode_scale(weight.zero)
        both = torch.stack([scale, (8.0 - zero) * scale], -1)
        self.scales = both.transpose(0, 1).contiguous().to(torch.bfloat16)
        self.codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.unpacked().int(), 1)
        self.group = int(weight.group)
        self.nbytes = self.codes.nbytes + self.scales.nbytes

    def matmul(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.to(torch.bfloat16).contiguous(), self.codes, self.group, self.scales
        )
        return y.to(x.dtype)


class _Int8(Prepared):
    def __init__(self, weight: Affine) -> None:
        self.codes = (weight.unpacked().short() - 128).to(torch.int8)
        self.scale = decode_scale(weight.scale)[:, 0].to(torch.bfloat16).contiguous()
        self.nbytes = self.codes.nbytes + self.scale.nbytes

    def matmul(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int8pack_mm(x.to(torch.bfloat16).contiguous(), self.codes, self.scale)
        return y.to(x.dtype)


class Int4Pack(Engine):
    """4-bit affine weights in groups of 32, 64, 128 or 256 that divide k."""

    name = "int4pack"

    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        rows = as_rows(weight)
        if device.type != "cpu":
            return f"it runs on the CPU, the weight is on {device}"
        if not isinstance(rows, Affine) or rows.bits != 4:
            return "it takes 4-bit affine weights"
        n, k = rows.shape
        if rows.group not in GROUPS or k % int(rows.group):
            return f"it takes groups of {GROUPS} that divide k, got group {rows.group} and k {k}"
        return "" if n % 16 == 0 else f"it takes n in multiples of 16, got {n}"

    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Prepared:
        rows = as_rows(weight)
        assert isinstance(rows, Affine)
        return _Int4(rows)


class Int8Pack(Engine):
    """Symmetric 8-bit weights with one scale a row."""

    name = "int8pack"

    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        if device.type != "cpu":
            return f"it runs on the CPU, the weight is on {device}"
        if not isinstance(weight, Affine) or (weight.bits, weight.group, weight.zero) != (8, "channel", None):
            return "it takes symmetric 8-bit weights with one scale a row"
        k = weight.shape[1]
        return "" if k % 32 == 0 else f"it reads beyond the row unless k is a multiple of 32, got {k}"

    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Prepared:
        assert isinstance(weight, Affine)
        return _Int8(weight)
