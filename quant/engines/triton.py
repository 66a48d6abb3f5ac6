"""The fused Triton kernels of `kernels`, for weights on a GPU, through their dispatcher.

The product, its gradient and the product with a low-rank update all read the packed weight. Pruned weights have a
product that reads what is kept (`quant.engines.sparse`); for many rows, and for the gradient, they are decoded each
time. Block-sparse ones have a gradient of their own too (`quant.engines.blocks`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.checks import unread_block
from quant.core import QuantizedTensor
from quant.engines.arguments import DTYPES, coded, pairs
from quant.engines.base import Engine, Traced
from quant.engines.blocks import Blocks
from quant.engines.rows import as_rows
from quant.engines.sparse import PlainRows, Scattered, Sparse
from quant.formats import Affine, BitMask, Codebook, Dense, KeptRows, NofM, Vectors
from quant.formats.kept_blocks import KeptBlocks

__all__ = ["DTYPES", "Fused", "Triton"]


class Fused(Traced):
    """A weight [n, k] as the arguments of the kernels of its family."""

    def __init__(self, weight: QuantizedTensor) -> None:
        rows, self.k = as_rows(weight), weight.shape[1]
        given, self.nbytes = pairs(weight) if isinstance(weight, Vectors) else coded(weight)
        self.arguments: dict[str, Any] = {"codes": given.pop("values"), **given}
        self.offset: Tensor | None = None
        if isinstance(rows, Vectors):
            self.family = "pairs"
        elif isinstance(rows, Affine):
            self.family = "affine"
            del self.arguments["levels"], self.arguments["rows"]
        else:
            assert isinstance(rows, Codebook)
            self.family, self.offset = "codebook", rows.offset
            del self.arguments["zero"]

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


class Triton(Engine):
    """Affine, codebook, paired and pruned weights on a CUDA or ROCm device, in float32, float16 and bfloat16."""

    name = "triton"

    def serves(self, device: torch.device) -> bool:
        """Whether it runs on `device` at all."""
        return device.type == "cuda"

    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        if not self.serves(device):
            return f"it runs on a GPU, the weight is on {device}"
        if dtype not in DTYPES:
            return f"it computes in float32, float16 and bfloat16, not in {dtype}"
        if reason := _unread(weight):
            return reason
        try:
            import kernels.dispatch  # noqa: F401
        except ImportError as error:
            return f"its kernels cannot be imported: {error}"
        return ""

    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Traced:
        return _prepared(weight)


def _unread(weight: QuantizedTensor) -> str:
    """Why there is no kernel for it; empty when there is one. Blocks of codes that cross rows have none."""
    if isinstance(weight, KeptRows):
        return "" if weight.values is None or isinstance(weight.values, Dense) else _unread(weight.values)
    if isinstance(weight, Vectors):
        size = weight.levels.shape[1]
        return "" if size == 2 else f"its kernels read codes of two weights, not of {size}"
    if isinstance(weight, KeptBlocks):
        return unread_block(weight.rows, weight.columns)
    taken = isinstance(weight, NofM | BitMask) or isinstance(as_rows(weight), Affine | Codebook)
    return "" if taken else f"no kernel reads {weight.format} weights of this form"


def _prepared(weight: QuantizedTensor) -> Traced:
    if isinstance(weight, KeptRows):
        values = weight.values
        inner = PlainRows(values) if isinstance(values, Dense) else None if values is None else _prepared(values)
        return Scattered(weight, inner)
    if isinstance(weight, KeptBlocks):
        return Blocks(weight)
    return Sparse(weight) if isinstance(weight, NofM | BitMask) else Fused(weight)
