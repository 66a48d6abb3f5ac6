"""y = x @ w.T for a few rows of x on the matrix unit: the weight is the left operand, so its tile fills the unit.

    acc[j, i] += (u[j, :] @ x[i, :] - zero[j, g] * sum(x[i, :])) * scale[j, g]      over steps of BLOCK_K columns

A scale that covers a whole step is applied after the partial product, in float32, so that rounding to a half precision
touches the levels alone, and codes of a uniform grid are exact; a scale of the whole row is applied at the end.
The columns are shared out among `splits` programs whose partial results are added up in their order. Splits and
BLOCK_K follow from the weight and the dtype alone: row i of y does not depend on how many rows x has. With a zero point
the sum of x is taken in the order of the compiled layout, and row i agrees to rounding where another block of rows or
configuration has another one.
Sources: Frantar et al. 2024 (MARLIN), arXiv 2408.11743; split sums: Hoque et al. 2024, arXiv 2402.00025.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.decoding import row_planes, scales_at, table_of, units_of
from kernels.gemv import shares
from kernels.partials import add_up
from kernels.tuning import Kernel, Launch

__all__ = ["column_block", "row_block", "small"]


def small(x: Tensor, out: Tensor, weight: Mapping[str, Any]) -> None:
    """Write x [m, k] @ w.T to `out` [m, n]; made for m of up to 64, right for any."""
    (m, n), k = out.shape, weight["k"]
    block_k = column_block(weight["GROUP"], x.dtype, weight["BITS"])
    splits, share = shares(n, k, 4 * block_k, block_n=64)
    part = out if splits == 1 else torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
    block_m = row_block(m)

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(m, block_m) * triton.cdiv(n, meta["BLOCK_N"]) * splits,)

    batch = {"x_ptr": x, "out_ptr": part, "m": m, "x_row": x.stride(0), "x_col": x.stride(1)}
    in_ptx = SMALL.in_ptx(x.dtype) and weight["BITS"] == 4 and weight["GROUP"] % block_k == 0
    fixed = {
        "share": share // block_k,
        "BLOCK_M": block_m,
        "BLOCK_K": block_k,
        "PTX": in_ptx,
        "UPCAST": SMALL.interpreted,
    }
    kernel = SINGLE if x.dtype == torch.float32 else TABLES if weight["ROWS"] else SMALL
    Launch(kernel, grid, {**batch, **weight, **fixed}).run()
    if splits > 1:
        add_up(part, out)


def column_block(group: int, dtype: torch.dtype, bits: int = 8) -> int:
    """Columns of a step: a power of two that divides the group, so that one scale serves it, where that is 16 or more.

    Other groups have their scales read one a weight.
    """
    largest = 32 if dtype == torch.float32 else 128 if group and bits <= 4 else 64  # wider ones spill
    divisor = group & -group if group else largest
    return min(largest, divisor) if divisor >= 16 else 32


def row_block(m: int) -> int:
    """Rows of x that a program takes: 16, 32 or 64."""
    return 16 if m <= 16 else 32 if m <= 32 else 64


# x [m, k] by strides, codes [n, row_bytes] uint8, scale and zero [n or 1, groups] -> out [m, n] or [splits, m, n]
@triton.jit
def _small(
    x_ptr,
    out_ptr,
    codes_ptr,
    levels_ptr,
    scale_ptr,
    nest_levels_ptr,
    nest_scale_ptr,
    nest_offset_ptr,
    zero_ptr,
    m,
    n,
    k,
    x_row,
    x_col,
    row_bytes,
    side_row,
    n_levels,
    share,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    NEST: tl.constexpr,
    PTX: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    across = (m + BLOCK_M - 1) // BLOCK_M
    down = (n + BLOCK_N - 1) // BLOCK_N
    out_row = tl.program_id(0) % across * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(0) // across % down * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(0) // (across * down)
    compute = tl.float32 if UPCAST else x_ptr.dtype.element_ty
    unit = compute if GROUP % BLOCK_K == 0 else tl.float32
    centre: tl.constexpr = 1 << (BITS - 1)
    table = table_of(levels_ptr, n_levels, BITS, unit)
    planes = row_planes(levels_ptr, row, n, n_levels, unit, ROWS, PTX)
    side = row.to(tl.int64) * side_row
    acc = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
    x_total = tl.full((BLOCK_M,), 0.0, tl.float32)
    blocks = (k + BLOCK_K - 1) // BLOCK_K
    for block in range(split * share, tl.minimum(blocks, split * share + share)):
        start = block * BLOCK_K  # so the compiler sees that it is aligned
        col = start + tl.arange(0, BLOCK_K)
        x_at = x_ptr + out_row.to(tl.int64)[None, :] * x_row + col.to(tl.int64)[:, None] * x_col
        x = tl.load(x_at, mask=(out_row[None, :] < m) & (col[:, None] < k), other=0.0).to(compute)
        u = units_of(
            codes_ptr,
            levels_ptr,
            table,
            planes,
            row,
            start,
            n,
            row_bytes,
            n_levels,
            BITS,
            ROWS,
            PTX,
            centre,
            unit,
            BLOCK_N,
            BLOCK_K,
        )
        if GROUP == 0 or (scale_ptr is None and zero_ptr is None):
            acc = tl.dot(u, x, acc, input_precision="ieee")
            if zero_ptr is not None:
                x_total += tl.sum(x.to(tl.float32), axis=0)
        elif GROUP % BLOCK_K == 0:
            at = side + start // GROUP
            part = tl.dot(u, x, input_precision="ieee")
            if zero_ptr is not None:
                z = tl.load(zero_ptr + at, mask=row < n, other=0.0).to(tl.float32) - centre
                part -= z[:, None] * tl.sum(x.to(tl.float32), axis=0)[None, :]
            s = scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, at, row < n, NEST)
            acc += part * s[:, None]
        else:
            at = side[:, None] + col[None, :] // GROUP
            inside = (row[:, None] < n) & (col[None, :] < k)
            w = u
            if zero_ptr is not None:
                w = u - (tl.load(zero_ptr + at, mask=inside, other=0.0).to(tl.float32) - centre)
            w *= scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, at, inside, NEST)
            acc = tl.dot(w.to(compute), x, acc, input_precision="ieee")
    if GROUP == 0:
        if zero_ptr is not None:
            z = tl.load(zero_ptr + side, mask=row < n, other=0.0).to(tl.float32) - centre
            acc -= z[:, None] * x_total[None, :]
        if scale_ptr is not None:
            s = scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, side, row < n, NEST)
            acc *= s[:, None]
    at = (split.to(tl.int64) * m + out_row.to(tl.int64)[None, :]) * n + row[:, None]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=(out_row[None, :] < m) & (row[:, None] < n))


def _variants(*settings: tuple[int, int, int]) -> Kernel:
    return Kernel(
        _small,
        configs=tuple(
            triton.Config({"BLOCK_N": n}, num_warps=warps, num_stages=stages) for n, warps, stages in settings
        ),
        slow=triton.Config({"BLOCK_N": 256}),
        key=("n", "k", "BITS", "GROUP", "ROWS", "NEST", "BLOCK_M"),
    )


SMALL = _variants((128, 4, 4), (128, 4, 3), (64, 4, 4), (128, 8, 4))
TABLES = _variants((128, 4, 3), (64, 4, 3))  # tables by rows: a fourth stage exceeds the shared memory of gfx942
SINGLE = _variants((64, 4, 2), (128, 8, 2))  # float32, without the matrix unit: larger tiles and more stages spill
