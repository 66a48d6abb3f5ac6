"""The weight itself, one launch: w[i, j] = (u[i, j] - zero[i, g]) * scale[i, g] in float32, rounded once to `dtype`.

u is the level of a code, or the code on a uniform grid, which is centred where there is no zero. It is bound by the
bytes that are written: a program writes whole 16-byte words of a tile of the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.decoding import planes_of, scales_at, table_of, units_of
from kernels.tuning import Kernel, Launch

__all__ = ["dequantize"]


def dequantize(out: Tensor, weight: Mapping[str, Any]) -> None:
    """Write the weight to `out` [n, k], contiguous."""
    n, k = out.shape
    divisor = weight["GROUP"] & -weight["GROUP"] if weight["GROUP"] else 64
    block_k = min(64, divisor) if divisor >= 16 else 32  # one scale a row where there can be, else one a weight

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(n, meta["BLOCK_N"]) * triton.cdiv(k, block_k),)

    Launch(DEQUANTIZE, grid, {"out_ptr": out, **weight, "BLOCK_K": block_k}).run()


# codes [n, row_bytes] uint8, levels [tables, n_levels], scale and zero [n or 1, groups] -> out [n, k]
@triton.jit
def _dequantize(
    out_ptr,
    codes_ptr,
    levels_ptr,
    scale_ptr,
    nest_levels_ptr,
    nest_scale_ptr,
    nest_offset_ptr,
    zero_ptr,
    n,
    k,
    row_bytes,
    side_row,
    n_levels,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    NEST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    across = (k + BLOCK_K - 1) // BLOCK_K
    row = tl.program_id(0) // across * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.program_id(0) % across * BLOCK_K
    col = start + tl.arange(0, BLOCK_K)
    inside = (row[:, None] < n) & (col[None, :] < k)
    w = units_of(
        codes_ptr,
        levels_ptr,
        table_of(levels_ptr, n_levels, BITS, tl.float32, PAIRS),
        planes_of(levels_ptr, n_levels, tl.float32, False),
        row,
        start,
        n,
        row_bytes,
        n_levels,
        BITS,
        ROWS,
        False,
        (1 << (BITS - 1)) if zero_ptr is None else 0,
        tl.float32,
        BLOCK_N,
        BLOCK_K,
        PAIRS,
    )
    at = row.to(tl.int64)[:, None] * side_row
    mask = row[:, None] < n
    if GROUP != 0:
        if GROUP % BLOCK_K == 0:
            at += start // GROUP
        else:
            at += col[None, :] // GROUP
            mask = inside
    if zero_ptr is not None:
        w -= tl.load(zero_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        w *= scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, at, mask, NEST)
    out_at = row.to(tl.int64)[:, None] * k + col[None, :]
    tl.store(out_ptr + out_at, w.to(out_ptr.dtype.element_ty), mask=inside)


DEQUANTIZE = Kernel(
    _dequantize,
    configs=tuple(triton.Config({"BLOCK_N": n}, num_warps=4) for n in (128, 64, 32)),
    slow=triton.Config({"BLOCK_N": 128}),
    key=("n", "k", "BITS", "GROUP", "ROWS", "PAIRS", "NEST"),
)
