"""What the backward and the low-rank kernel share: a tile of a quantized weight, decoded inside a product.

    codebook   w[i, j] = levels[i // rows, c[i, j]] * scale[i, g(j)]
    affine     w[i, j] = (c[i, j] - zero[i, g(j)]) * scale[i, g(j)]     without `levels`

One set of arguments serves both families; what is absent is None, and its branch is not compiled. The functions here
are Triton's: `kernels.op.interpreted` loads this module a second time along with the kernels that use it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_codes, check_dtype, check_side, group_size, row_stride
from kernels.packing import packed_bytes

__all__ = ["column_block", "table_of", "tile_scale", "tile_side", "tile_values", "weight_arguments"]


def weight_arguments(
    codes: Tensor,
    levels: Tensor | None,
    scale: Tensor | None,
    zero: Tensor | None,
    shape: tuple[int, int],
    bits: int,
    group: int | str,
    rows: int,
) -> dict[str, Any]:
    """The arguments of a kernel that belong to the weight [n, k], by name.

    Raises ValueError for shapes that do not belong together, TypeError for a wrong dtype.
    """
    n, k = shape
    check_codes(codes, shape, bits)
    check_side("scale", scale, shape, group)
    check_side("zero", zero, shape, group)
    if levels is not None:
        check_dtype("levels", levels.dtype)
        tables = -(-n // rows) if rows > 0 else 1
        if rows < 0 or levels.ndim != 2 or levels.shape[0] != tables or not 0 < levels.shape[1] <= 1 << bits:
            raise ValueError(
                f"levels must be [{tables}, 1 .. {1 << bits}] with {rows} rows a table, got {list(levels.shape)}"
            )
    scale = None if scale is None else scale.contiguous()
    return {
        "codes_ptr": codes,
        "levels_ptr": None if levels is None else levels.contiguous(),
        "scale_ptr": scale,
        "zero_ptr": None if zero is None else zero.contiguous(),
        "n": n,
        "k": k,
        "row_bytes": packed_bytes(k, bits),
        "side_row": row_stride(scale),
        "n_levels": 0 if levels is None else levels.shape[1],
        "BITS": bits,
        "GROUP": group_size(k, group),
        "ROWS": rows,
    }


def column_block(group: int, dtype: torch.dtype) -> int:
    """Columns of a tile: a power of two that divides the group where that leaves 32 or more, so one scale serves it."""
    largest = 32 if dtype == torch.float32 else 64  # wider float32 tiles spill
    divisor = group & -group
    return min(largest, divisor) if divisor >= 32 else largest


@triton.jit
def _codes(codes_ptr, row, start, n, row_bytes, BITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    # rows row[BLOCK_N], columns start .. start + BLOCK_K -> codes [BLOCK_N, BLOCK_K] int32, 0 outside the stored bytes
    base = codes_ptr + row.to(tl.int64)[:, None] * row_bytes
    if BITS == 8:
        at = start + tl.arange(0, BLOCK_K)[None, :]
        code = tl.load(base + at, mask=(row[:, None] < n) & (at < row_bytes), other=0).to(tl.int32)
    elif 8 % BITS == 0:
        at = start * BITS // 8 + tl.arange(0, BLOCK_K * BITS // 8)[None, :]
        packed = tl.load(base + at, mask=(row[:, None] < n) & (at < row_bytes), other=0).to(tl.int32)
        shift = 8 - BITS - BITS * tl.arange(0, 8 // BITS)
        code = tl.reshape((packed[:, :, None] >> shift[None, None, :]) & ((1 << BITS) - 1), (BLOCK_N, BLOCK_K))
    else:
        bit = (start + tl.arange(0, BLOCK_K)[None, :]) * BITS
        at = bit // 8
        high = tl.load(base + at, mask=(row[:, None] < n) & (at < row_bytes), other=0).to(tl.int32)
        low = tl.load(base + at + 1, mask=(row[:, None] < n) & (at + 1 < row_bytes), other=0).to(tl.int32)
        code = ((high * 256 + low) >> (16 - BITS - bit % 8)) & ((1 << BITS) - 1)
    return code


@triton.jit
def table_of(levels_ptr, n_levels, BITS: tl.constexpr):
    # the first table [2**BITS] float32, to be read once before a loop; one zero where there are no levels
    if levels_ptr is None:
        table = tl.full((1,), 0.0, tl.float32)
    else:
        entry = tl.arange(0, 1 << BITS)
        table = tl.load(levels_ptr + entry, mask=entry < n_levels, other=0.0).to(tl.float32)
    return table


@triton.jit
def tile_scale(scale_ptr, row, start, n, side_row, GROUP: tl.constexpr):
    # scales [BLOCK_N] float32 of a tile that lies in one group of each row
    at = row.to(tl.int64) * side_row
    if GROUP != 0:
        at += start // GROUP
    return tl.load(scale_ptr + at, mask=row < n, other=0.0).to(tl.float32)


@triton.jit
def tile_side(side_ptr, row, start, n, k, side_row, GROUP: tl.constexpr, BLOCK_K: tl.constexpr):
    # scales or zeros of a tile, float32: [BLOCK_N, 1] where the tile lies in one group, else [BLOCK_N, BLOCK_K]
    if GROUP % BLOCK_K == 0:
        value = tile_scale(side_ptr, row, start, n, side_row, GROUP)[:, None]
    else:
        col = start + tl.arange(0, BLOCK_K)
        at = row.to(tl.int64)[:, None] * side_row + col[None, :] // GROUP
        inside = (row[:, None] < n) & (col[None, :] < k)
        value = tl.load(side_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return value


@triton.jit
def tile_values(
    codes_ptr,
    levels_ptr,
    zero_ptr,
    table,
    row,
    start,
    n,
    k,
    row_bytes,
    side_row,
    n_levels,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # the weight without its scale, [BLOCK_N, BLOCK_K] float32; finite, and of no meaning, outside [n, k]
    code = _codes(codes_ptr, row, start, n, row_bytes, BITS, BLOCK_N, BLOCK_K)
    if levels_ptr is None:
        if zero_ptr is None:
            w = (code - (1 << (BITS - 1))).to(tl.float32)
        else:
            w = code.to(tl.float32) - tile_side(zero_ptr, row, start, n, k, side_row, GROUP, BLOCK_K)
    elif ROWS == 0:
        flat = tl.reshape(code, (BLOCK_N * BLOCK_K,))
        w = tl.reshape(tl.gather(table, flat, 0), (BLOCK_N, BLOCK_K))
    else:
        at = (row // ROWS).to(tl.int64)[:, None] * n_levels + code
        w = tl.load(levels_ptr + at, mask=(row[:, None] < n) & (code < n_levels), other=0.0).to(tl.float32)
    return w
