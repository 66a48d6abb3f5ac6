"""Sums of partial products, in a fixed order: out[i, j] = part[0, i, j] + part[1, i, j] + ... in float32.

A product whose k is shared out among programs writes one partial result each to a workspace; adding them up in their
order afterwards gives the same bits in every run, which additions in the order of arrival would not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.tuning import Kernel, Launch

__all__ = ["add_up"]


def add_up(parts: Tensor, out: Tensor) -> None:
    """Write the sum of `parts` [splits, m, n] float32 over its first dimension to `out` [m, n]."""
    size = out.numel()

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(size, meta["BLOCK"]),)

    Launch(ADD_UP, grid, {"parts_ptr": parts, "out_ptr": out, "size": size, "SPLITS": parts.shape[0]}).run()


# parts [SPLITS, size] float32 -> out [size]
@triton.jit
def _add_up(parts_ptr, out_ptr, size, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for s in tl.static_range(SPLITS):
        total += tl.load(parts_ptr + tl.full((), s, tl.int64) * size + at, mask=at < size, other=0.0)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=at < size)


ADD_UP = Kernel(
    _add_up,
    configs=(triton.Config({"BLOCK": 512}, num_warps=4),),
    slow=triton.Config({"BLOCK": 16384}),
    key=(),
)
