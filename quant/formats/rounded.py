"""A weight whose product rounds x: each row of x to `bits` bits by its own largest magnitude, when it is multiplied.

    step[i] = max |x[i, :]| / (2**(bits - 1) - 1)        x[i, j] ~ round(x[i, j] / step[i]) * step[i]

With 8-bit weights both factors of the product are whole numbers ("W8A8"). The rounding is that of `kernels.w8a8`; the
gradient passes it as if it were not there.
Sources: Dettmers et al. 2022 (LLM.int8()), arXiv 2208.07339, section 2; Xiao et al. 2022 (SmoothQuant), arXiv
2211.10438.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.formats.composed import Composed

__all__ = ["RoundedInputs", "round_rows"]


def round_rows(x: Tensor, bits: int) -> Tensor:
    """x [..., k] to the nearest of 2**bits - 1 even steps between -max|row| and max|row|, in the dtype of x.

    A row that is not finite becomes NaN.

    >>> round_rows(torch.tensor([[127.0, 1.4, -0.6]]), 8)
    tensor([[127.,   1.,  -1.]])
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    step = wide.abs().amax(-1, keepdim=True) / ((1 << (bits - 1)) - 1)
    return (torch.round(wide / torch.where(step > 0, step, 1.0)) * step).to(x.dtype)


@dataclass(frozen=True, eq=False)
class RoundedInputs(Composed, format="rounded-inputs"):
    """`inner` [n, k] as it is, its x rounded to `bits` bits a row."""

    bits: int = 8

    def __post_init__(self) -> None:
        if self.inner.shape != self.shape:
            raise ValueError(f"the inner weight must be {list(self.shape)}, got {list(self.inner.shape)}")
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits of x must be 2..8, got {self.bits}")

    @property
    def rounds(self) -> bool:
        return True

    def decode(self) -> Tensor:
        return self.inner.decode()

    def activations(self, x: Tensor) -> Tensor:
        return round_rows(x, self.bits)

    def before(self, x: Tensor) -> Tensor:
        return round_rows(x, self.bits)

    def before_transposed(self, dx: Tensor) -> Tensor:
        return dx
