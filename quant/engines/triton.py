"""The fused Triton kernels of `kernels`, for weights on a GPU, through their dispatcher.

The product, its gradient and the product with a low-rank update all read the packed weight. Scales that are quantized
in 8 bits are read in that form; other nested scales are decoded once and kept. Pruned weights have a product that reads
what is kept; for many rows, and for the gradient, they are decoded each time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quant.core import QuantizedTensor
from quant.engines.base import Engine, Prepared
from quant.engines.rows import as_rows
from quant.formats import Affine, BitMask, Codebook, Dense, NofM, Reshaped
from quant.grouping import decode_scale

__all__ = ["Triton"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Fused(Prepared):
    """A weight [n, k] as the arguments of the kernels of its family."""

    def __init__(self, weight: QuantizedTensor) -> None:
        rows = as_rows(weight)
        assert isinstance(rows, Affine | Codebook)
        stored = weight.inner if isinstance(weight, Reshaped) else weight
        assert isinstance(stored, Affine | Codebook)
        scale, size = _side(stored.scale, rows.scale)
        self.k = rows.shape[1]
        self.arguments: dict[str, Any] = {"codes": rows.codes, "scale": scale, "bits": rows.bits, "group": rows.group}
        self.offset: Tensor | None = None
        if isinstance(rows, Affine):
            self.family = "affine"
            zero = None if rows.zero is None else decode_scale(rows.zero)
            size += 0 if zero is None or zero is rows.zero else zero.nbytes
            self.arguments |= {"zero": zero}
        else:
            self.family, self.offset = "codebook", rows.offset
            self.arguments |= {"levels": rows.levels, "rows": rows.rows}
        self.nbytes = size

    def _call(self, what: str, *args: Tensor, **kwargs: Any) -> Tensor:
        from kernels.dispatch import OPERATORS

        y: Tensor = OPERATORS[f"{self.family}_{what}"].call(*args, **kwargs, **self.arguments)
        return y

    def _with_offset(self, y: Tensor, x: Tensor) -> Tensor:
        """What a constant added to every weight adds to the product."""
        if self.offset is None:
            return y
        total = x.sum(-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        return y + (total * self.offset).to(y.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        return self._with_offset(self._call("matmul", x), x)

    def transposed(self, dy: Tensor) -> Tensor:
        return self._with_offset(self._call("grad", dy, k=self.k), dy)

    def adapted(self, x: Tensor, inner: Tensor, b: Tensor) -> Tensor:
        """x @ W.T + inner [m, r] @ b [n, r].T, differentiable in all three."""
        return self._with_offset(self._call("lora", x, inner=inner, b=b), x)


def _side(stored: Any, by_rows: Any) -> tuple[Any, int]:
    """Scales as a kernel takes them, and the bytes that were derived from the stored ones for it."""
    if stored is None or isinstance(stored, Tensor):
        return by_rows, 0
    flat = stored.inner if isinstance(stored, Reshaped) else stored
    if isinstance(flat, Codebook) and tuple(flat.levels.shape) == (1, 256) and isinstance(flat.scale, Tensor):
        columns = flat.shape[1]
        group = {"channel": columns, "tensor": flat.numel}.get(str(flat.group), flat.group)
        if flat.shape[0] == 1 or columns % int(group) == 0 or flat.group == "tensor":
            from kernels.nested import NestedScale

            return NestedScale(
                flat.codes.view(tuple(by_rows.shape)), flat.levels, flat.scale, flat.offset, int(group)
            ), 0
    scale = decode_scale(by_rows)
    return scale, scale.nbytes


class Sparse(Prepared):
    """A pruned weight [n, k] as the arguments of its product."""

    def __init__(self, weight: NofM | BitMask) -> None:
        self.weight = weight
        values = weight.values
        if isinstance(weight, BitMask):
            from kernels.sparse_starts import mask_starts

            assert isinstance(values, Dense)
            starts = mask_starts(weight.mask, weight.shape[1])
            self.name, self.nbytes = "bitmask_matmul", starts.nbytes
            self.arguments: dict[str, Any] = {"mask": weight.mask, "starts": starts, "values": values.values}
            return
        self.name = "two_of_four_matmul"
        self.arguments = {"indices": weight.indices, "scale": None, "group": "tensor"}
        if isinstance(values, Dense):
            self.arguments |= {"values": values.values}
        else:
            assert isinstance(values, Affine)
            scale = decode_scale(values.scale)
            self.nbytes = 0 if scale is values.scale else scale.nbytes
            self.arguments |= {"values": values.codes, "scale": scale, "group": values.group}

    @staticmethod
    def takes(weight: QuantizedTensor) -> bool:
        """Whether a kernel reads this weight: a mask over plain values, or 2:4 over plain ones or 4-bit codes."""
        if isinstance(weight, BitMask):
            return isinstance(weight.values, Dense)
        if not isinstance(weight, NofM) or (weight.keep, weight.group) != (2, 4):
            return False
        v = weight.values
        return isinstance(v, Dense) or (isinstance(v, Affine) and v.bits == 4 and v.zero is None)

    def matmul(self, x: Tensor) -> Tensor:
        from kernels.dispatch import OPERATORS, takes_dense

        if takes_dense(x, *self.weight.shape):
            return torch.nn.functional.linear(x, self.weight.dequantize(x.dtype))
        y: Tensor = OPERATORS[self.name].call(x, **self.arguments)
        return y

    def transposed(self, dy: Tensor) -> Tensor:
        return dy @ self.weight.dequantize(dy.dtype)


class Triton(Engine):
    """Affine, codebook and some pruned weights on a CUDA or ROCm device, in float32, float16 and bfloat16."""

    name = "triton"

    def serves(self, device: torch.device) -> bool:
        """Whether it runs on `device` at all."""
        return device.type == "cuda"

    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        if not self.serves(device):
            return f"it runs on a GPU, the weight is on {device}"
        if dtype not in DTYPES:
            return f"it computes in float32, float16 and bfloat16, not in {dtype}"
        if not isinstance(as_rows(weight), Affine | Codebook) and not Sparse.takes(weight):
            return (
                "it takes affine and codebook weights, 2:4 ones of plain or 4-bit values, and masks over plain values"
            )
        try:
            import kernels.dispatch  # noqa: F401
        except ImportError as error:
            return f"its kernels cannot be imported: {error}"
        return ""

    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Prepared:
        return Sparse(weight) if isinstance(weight, NofM | BitMask) else Fused(weight)
