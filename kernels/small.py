"""y = x @ w.T for a few rows of x on the matrix unit: the weight is the left operand, so its tile fills the unit.

    acc[j, i] += (u[j, :] @ x[i, :] - zero[j, g] * (1 @ x[i, :])) * scale[j, g]      over steps of BLOCK_K columns

A scale that covers a whole step is applied after the partial product, in float32, so that rounding to a half precision
touches the levels alone, and codes of a uniform grid are exact; a scale of the whole row is applied at the end. The sum
of x that a zero point is multiplied by is a product with ones: no sum follows the layout of a tile.
The columns are shared out among `splits` programs whose partial results are added up in their order. Splits and
BLOCK_K follow from the weight and the dtype alone, and sums over columns are products of tiles, step by step: row i of
y has the same bits however many rows x has and whatever the configuration. NVIDIA's compiler takes one matrix
instruction for all of them; AMD's takes another one for up to 16 rows than for more, which agree to rounding.
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

__all__ = ["column_block", "product_of", "row_block", "small"]


def small(x: Tensor, out: Tensor, weight: Mapping[str, Any]) -> None:
    """Write x [m, k] @ w.T to `out` [m, n]; made for m of up to 64, right for any."""
    (m, n), k = out.shape, weight["k"]
    bits = 8 if weight["ROWS"] else weight["BITS"]  # wider steps beside tables by rows exceed gfx942's shared memory
    block_k = column_block(weight["GROUP"], x.dtype, bits)
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
    Launch(_kernel(x.dtype, weight, block_m, block_k), grid, {**batch, **weight, **fixed}).run()
    if splits > 1:
        add_up(part, out)


def _kernel(dtype: torch.dtype, weight: Mapping[str, Any], block_m: int, block_k: int) -> Kernel:
    held = block_m  # in proportion to what a tile keeps in registers, as compiling it tells
    held *= 2 if weight["zero_ptr"] is not None or weight["ROWS"] or block_k > 64 else 1
    held *= 4 if 4 < weight["BITS"] < 8 else 1  # decoded in words of 64 bits
    if dtype == torch.float32:
        return SINGLE if held < 128 else CROWDED_SINGLE
    beside = weight["ROWS"] or weight["zero_ptr"] is not None
    crowded = CROWDED_PAIRS if weight["PAIRS"] else CROWDED
    return crowded if held >= 128 else THREE_STAGES if beside else SMALL


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


@triton.jit
def product_of(
    x_ptr,
    codes_ptr,
    levels_ptr,
    scale_ptr,
    nest_levels_ptr,
    nest_scale_ptr,
    nest_offset_ptr,
    zero_ptr,
    out_row,
    row,
    split,
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
    PAIRS: tl.constexpr,
    NEST: tl.constexpr,
    PTX: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # rows row[BLOCK_N] of the weight times rows out_row[BLOCK_M] of x over the columns of a split
    # -> [BLOCK_N, BLOCK_M] float32
    compute = tl.float32 if UPCAST else x_ptr.dtype.element_ty
    unit = compute if GROUP % BLOCK_K == 0 else tl.float32
    centre: tl.constexpr = 1 << (BITS - 1)
    table = table_of(levels_ptr, n_levels, BITS, unit, PAIRS)
    planes = row_planes(levels_ptr, row, n, n_levels, unit, ROWS, PTX, PAIRS)
    side = row.to(tl.int64) * side_row
    ones = tl.full((BLOCK_N, BLOCK_K), 1.0, compute)
    acc = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
    x_total = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
    blocks = (k + BLOCK_K - 1) // BLOCK_K
    for block in range(split * share, tl.minimum(blocks, split * share + share)):
        start = block * BLOCK_K  # so the compiler sees that it is aligned
        col = start + tl.arange(0, BLOCK_K)
        x_at = x_ptr + out_row.to(tl.int64)[None, :] * x_row + col.to(tl.int64)[:, None] * x_col
        x = tl.load(x_at, mask=(out_row[None, :] < m) & (col[:, None] < k), other=0.0).to(compute)
        u = units_of(
            codes_ptr, levels_ptr, table, planes, row, start, n, row_bytes, n_levels,
            BITS, ROWS, PTX, centre, unit, BLOCK_N, BLOCK_K, PAIRS,
        )  # fmt: skip
        if GROUP == 0:
            if zero_ptr is not None:
                x_total = tl.dot(ones, x, x_total, input_precision="ieee")
            acc = tl.dot(u, x, acc, input_precision="ieee")
        elif GROUP % BLOCK_K == 0:
            at = side + start // GROUP
            if zero_ptr is None:
                part = tl.dot(u, x, input_precision="ieee")
            else:
                z = centre - tl.load(zero_ptr + at, mask=row < n, other=0.0).to(tl.float32)
                part = z[:, None] * tl.dot(ones, x, input_precision="ieee")
                part = tl.dot(u, x, part, input_precision="ieee")
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
            acc -= z[:, None] * x_total
        if scale_ptr is not None:
            s = scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, side, row < n, NEST)
            acc *= s[:, None]
    return acc


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
    PAIRS: tl.constexpr,
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
    acc = product_of(
        x_ptr, codes_ptr, levels_ptr, scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, zero_ptr,
        out_row, row, split, m, n, k, x_row, x_col, row_bytes, side_row, n_levels, share,
        BITS, GROUP, ROWS, PAIRS, NEST, PTX, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    at = (split.to(tl.int64) * m + out_row.to(tl.int64)[None, :]) * n + row[:, None]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=(out_row[None, :] < m) & (row[:, None] < n))


def _variants(*settings: tuple[int, int, int]) -> Kernel:
    return Kernel(
        _small,
        configs=tuple(
            triton.Config({"BLOCK_N": n}, num_warps=warps, num_stages=stages) for n, warps, stages in settings
        ),
        slow=triton.Config({"BLOCK_N": 256}),
        key=("n", "k", "BITS", "GROUP", "ROWS", "PAIRS", "NEST", "BLOCK_M"),
    )


SMALL = _variants((128, 4, 4), (128, 4, 3), (64, 4, 4), (128, 8, 4))
# of a fourth stage gfx942 has no shared memory for tables by rows, and its compiler of 3.6 fails with zero points
THREE_STAGES = _variants((128, 4, 3), (64, 4, 3))
CROWDED = _variants((128, 8, 3), (64, 4, 3))  # four warps to 128 rows would spill
CROWDED_PAIRS = _variants((128, 8, 3))  # nor is there room for the two tables in four warps
SINGLE = _variants((64, 4, 2), (128, 8, 2))  # float32, without the matrix unit: larger tiles and more stages spill
CROWDED_SINGLE = _variants((128, 8, 2))
