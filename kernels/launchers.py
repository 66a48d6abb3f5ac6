"""The two launches of a quantized weight: decode it, and multiply by it. Each family brings its kernel and arguments.

A kernel takes `out_ptr`, the arguments of its family (among them n, k and GROUP) and the block sizes; a product also
takes x by its strides. Programs are numbered along one axis, whose length is not limited as the others' is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.tuning import Kernel, Launch

__all__ = ["decode", "multiply"]


def decode(kernel: Kernel, weight: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weight [n, k] in `dtype`."""
    n, k = weight["n"], weight["k"]
    out = torch.empty(n, k, dtype=dtype, device=device)
    block_k = _column_block(weight["GROUP"], 128)

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(n, meta["BLOCK_N"]) * triton.cdiv(k, block_k),)

    Launch(kernel, grid, {"out_ptr": out, **weight, "BLOCK_K": block_k}).run()
    return out


def multiply(kernel: Kernel, x: Tensor, weight: Mapping[str, Any]) -> Tensor:
    """x [..., k] @ w.T -> [..., n] in the dtype of `x`; nothing is launched for an empty batch."""
    n, k = weight["n"], weight["k"]
    flat = x.reshape(-1, k)
    m = flat.shape[0]
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(m, meta["BLOCK_M"]) * triton.cdiv(n, meta["BLOCK_N"]),)

    batch = {"x_ptr": flat, "out_ptr": out, "m": m, "x_row": flat.stride(0), "x_col": flat.stride(1)}
    block_k = _column_block(weight["GROUP"], 32 if x.dtype == torch.float32 else 64)  # 64 float32 columns spill
    fixed = {"BLOCK_K": block_k, "M_BUCKET": _m_bucket(m), "UPCAST": kernel.interpreted}
    if m:
        Launch(kernel, grid, {**batch, **weight, **fixed}).run()
    return out.view(*x.shape[:-1], n)


def _column_block(group: int, largest: int) -> int:
    """Columns that a program reads at a time: a power of two that divides the group, so that one scale serves them.

    A group without a divisor of 32 gets `largest`, and its scales are then read one a weight; so does a whole row (0).
    """
    divisor = group & -group
    return min(largest, divisor) if divisor >= 32 else largest


def _m_bucket(m: int) -> int:
    """The batch size as the tuner knows it: few sizes are tuned, and a batch of 3 runs as a batch of 16 does."""
    return 16 if m <= 16 else 64 if m <= 64 else 256
