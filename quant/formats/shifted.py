"""Groups with a minimum: w = inner.decode() - minimum, one value of `minimum` a group (GGUF's K formats).

The product needs no zero points: x W^T = x inner^T - (sums of x over each group) minimum^T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from quant.core import QuantizedTensor
from quant.formats.affine import check_side
from quant.formats.composed import Composed
from quant.grouping import check_group, decode_scale, expand, group_shape, grouped

__all__ = ["Shifted"]


@dataclass(frozen=True, eq=False)
class Shifted(Composed, format="shifted"):
    """`minimum` [n, ceil(k / group)], or [n, 1] for "channel", is subtracted from the values of `inner` [n, k]."""

    minimum: Tensor | QuantizedTensor
    group: int | str

    stored_parts: ClassVar[dict[str, str]] = {"inner": "inherit", "minimum": "zeros"}

    def __post_init__(self) -> None:
        check_group(self.group)
        if self.group == "tensor":
            raise ValueError("group of a shifted weight must be an integer or 'channel'")
        if self.inner.shape != self.shape:
            raise ValueError(f"the inner weight must be {list(self.shape)}, got {list(self.inner.shape)}")
        check_side("minimum", self.minimum, group_shape(self.shape, self.group))

    def decode(self) -> Tensor:
        return self.inner.decode() - expand(decode_scale(self.minimum), self.shape, self.group)

    def before(self, x: Tensor) -> Tensor:
        return x

    def before_transposed(self, dx: Tensor) -> Tensor:
        return dx

    def beside(self, x: Tensor) -> Tensor:
        return grouped(x, self.group).sum(-1) @ -decode_scale(self.minimum).to(x.dtype).T

    def beside_transposed(self, dy: Tensor) -> Tensor:
        by_group = dy @ -decode_scale(self.minimum).to(dy.dtype)
        return expand(by_group, (dy.shape[0], self.shape[1]), self.group)
