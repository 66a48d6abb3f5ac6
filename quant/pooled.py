"""QA-LoRA: an adapter that reads one number for each group of inputs, and so merges into the zero points.

    y = base(x) + (alpha / rank) * B A p(x),    p(x)_g = sum of x_j over the columns j of group g

With A [r, groups] the update D = (alpha / rank) B A [n, groups] is one number for each group of the weight, and
(code - zero) * scale + D = (code - (zero - D / scale)) * scale: new zeros, the same codes and scales, and no error
but that of rounding the zeros. A zero z stored as float16 moves weights by at most 2**-11 |z| scale, as float32 by
2**-24 |z| scale.
Source: Xu et al. 2023 (QA-LoRA), arXiv 2309.14717, algorithm 1.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from quant.core import QuantizedTensor, UnsupportedError
from quant.formats import Affine
from quant.grouping import Group, decode_scale, expand, group_shape, grouped, inverse_of
from quant.lora_config import LoRAConfig

__all__ = ["PooledLoRALayer", "merged_into_zeros", "pooled_group"]


def pooled_group(weight: QuantizedTensor) -> Group:
    """The group of an affine weight, by rows; UnsupportedError for what has no zero points of its own in each row."""
    if not isinstance(weight, Affine) or weight.group == "tensor":
        what = f"format {weight.format!r}" if not isinstance(weight, Affine) else "one group for the tensor"
        raise UnsupportedError(f"a pooled adapter needs an affine base with groups within a row, this has {what}")
    return weight.group


class PooledLoRALayer(nn.Module):
    """The two low-rank matrices of a pooled adapter, A [r, groups] and B [n, r], in float32."""

    def __init__(self, base: QuantizedTensor, config: LoRAConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        n, self.in_features = base.shape
        self.config, self.group = config, pooled_group(base)
        groups = group_shape((n, self.in_features), self.group)[1]
        a = torch.empty(config.rank, groups)
        self.A = nn.Parameter(nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator))
        self.B = nn.Parameter(torch.zeros(n, config.rank))

    def pooled(self, x: Tensor) -> Tensor:
        """Sums over groups, x [..., k] -> [..., groups]."""
        flat = x.reshape(-1, self.in_features)
        return grouped(flat, self.group).sum(-1).view(*x.shape[:-1], -1)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] -> (alpha / rank) * p(x) A^T B^T [..., n]."""
        inner = nn.functional.dropout(self.pooled(x.to(self.A.dtype)), self.config.dropout, self.training)
        return ((inner @ self.A.T) @ self.B.T * self.config.scaling).to(x.dtype)

    def update(self) -> Tensor:
        """What the adapter adds to the weights of each group, [n, groups] float32."""
        return (self.B.float() @ self.A.float()) * self.config.scaling

    def delta(self) -> Tensor:
        """What the adapter adds to the weight, [n, k] float32."""
        update = self.update()
        return expand(update, (len(update), self.in_features), self.group).expand(-1, self.in_features)


def merged_into_zeros(weight: QuantizedTensor, update: Tensor, dtype: torch.dtype = torch.float32) -> Affine:
    """`weight` plus `update` [n, groups] on all weights of a group, with its codes and scales and zeros in `dtype`.

    A group of zeros has no scale for its zero to count in: it gets 1 (in the dtype of the others). Raises
    UnsupportedError where scales are quantized themselves and one of them is 0.
    """
    pooled_group(weight)
    assert isinstance(weight, Affine)
    scale = decode_scale(weight.scale)
    stored, empty = weight.scale, (inverse_of(scale) == 0) & (update != 0)
    if bool(empty.any()):
        if isinstance(stored, QuantizedTensor):
            raise UnsupportedError("a group's scale is 0 and quantized itself: it cannot hold an update")
        stored = stored.masked_fill(empty, 1.0)
        scale = stored.float()
    before = torch.full_like(scale, 1 << (weight.bits - 1)) if weight.zero is None else decode_scale(weight.zero)
    zero = (before - update.to(scale) * inverse_of(scale)).to(dtype)
    return dataclasses.replace(weight, scale=stored, zero=zero)
