"""The kernels under `kernels.quantize`: fused quantization, extremes of groups, scales, codes under given scales.

All are compiled without contraction (`enable_fp_fusion=False`), so each operation is rounded by itself.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from kernels.quantize_tile import MAGIC, codes_under, grid_of, store_codes, weights_at
from kernels.tuning import Kernel

__all__ = ["ENCODE", "EXTREMES", "QUANTIZE", "SIDES"]


# weight [n, k] -> codes [n, row_bytes] uint8, scale [n, groups], zero [n, zero_bytes] uint8 or [n, groups] float16
@triton.jit
def _quantize(
    weight_ptr,
    codes_ptr,
    scale_ptr,
    zero_ptr,
    levels_ptr,
    n,
    k,
    groups,
    n_levels,
    row_bytes,
    zero_bytes,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    across = (groups + BLOCK_G - 1) // BLOCK_G
    first_row = tl.program_id(0) // across * BLOCK_N
    first = tl.program_id(0) % across * BLOCK_G
    cell = tl.arange(0, BLOCK_N * BLOCK_G)
    row = first_row + cell // BLOCK_G
    group = first + cell % BLOCK_G
    lane = tl.arange(0, WIDTH)[None, :]
    col = group[:, None] * GROUP + lane
    real = (row < n) & (group < groups)
    inside = real[:, None] & (lane < GROUP) & (col < k)
    w = weights_at(weight_ptr, row.to(tl.int64)[:, None] * k + col, inside)
    if (KIND == "codebook") or (KIND == "symmetric") or (KIND == "mx"):
        high = tl.max(tl.abs(w), axis=1)
        low = high
    else:
        low, high = tl.min(w, axis=1), tl.max(w, axis=1)
    scale, inverse, zero = grid_of(low, high, scale_ptr.dtype.element_ty, KIND, BITS)
    if KIND == "integer":
        packed = tl.where(real, (zero + MAGIC).to(tl.int32, bitcast=True) & 255, 0)
        rows = first_row + tl.arange(0, BLOCK_N)
        start = first * BITS // 8
        left = tl.where(rows < n, zero_bytes - start, 0)
        base = zero_ptr + rows.to(tl.int64) * zero_bytes + start
        store_codes(base, tl.reshape(packed, (BLOCK_N, BLOCK_G)), left, BITS)
    elif KIND == "float":
        tl.store(zero_ptr + row.to(tl.int64) * groups + group, zero.to(tl.float16), mask=real)
    tl.store(scale_ptr + row.to(tl.int64) * groups + group, scale.to(scale_ptr.dtype.element_ty), mask=real)
    code = codes_under(w, inverse[:, None], zero[:, None], levels_ptr, n_levels, KIND, BITS)
    start = group * GROUP * BITS // 8
    left = tl.where(real, tl.minimum(row_bytes - start, (GROUP * BITS + 7) // 8), 0)
    store_codes(codes_ptr + row.to(tl.int64) * row_bytes + start, tl.where(inside, code, 0), left, BITS)


# weight [n, k] -> low and high [n, groups] float32, of groups of GROUP columns
@triton.jit
def _extremes(
    weight_ptr,
    low_ptr,
    high_ptr,
    n,
    k,
    groups,
    GROUP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    cell = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    row, group = cell // groups, cell % groups
    low = tl.full((BLOCK_C, BLOCK), 0.0, tl.float32)
    high = tl.full((BLOCK_C, BLOCK), 0.0, tl.float32)
    for start in range(0, GROUP, BLOCK):
        lane = start + tl.arange(0, BLOCK)[None, :]
        col = group[:, None] * GROUP + lane
        w = weights_at(weight_ptr, row[:, None] * k + col, (row[:, None] < n) & (lane < GROUP) & (col < k))
        low, high = tl.minimum(low, w), tl.maximum(high, w)
    tl.store(low_ptr + cell, tl.min(low, axis=1), mask=row < n)
    tl.store(high_ptr + cell, tl.max(high, axis=1), mask=row < n)


# low and high [cells, pieces] -> scale, inverse, shift and zero [cells]; zero float16, or None where it is packed after
@triton.jit
def _sides(
    low_ptr,
    high_ptr,
    scale_ptr,
    inverse_ptr,
    shift_ptr,
    zero_ptr,
    cells,
    pieces,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    cell = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    low = tl.full((BLOCK_C, BLOCK), 0.0, tl.float32)
    high = tl.full((BLOCK_C, BLOCK), 0.0, tl.float32)
    for start in range(0, pieces, BLOCK):
        piece = start + tl.arange(0, BLOCK)[None, :]
        at, inside = cell[:, None] * pieces + piece, (cell[:, None] < cells) & (piece < pieces)
        low = tl.minimum(low, tl.load(low_ptr + at, mask=inside, other=0.0))
        high = tl.maximum(high, tl.load(high_ptr + at, mask=inside, other=0.0))
    least, most = tl.min(low, axis=1), tl.max(high, axis=1)
    if (KIND == "codebook") or (KIND == "symmetric") or (KIND == "mx"):
        most = tl.maximum(least * -1.0, most)
    scale, inverse, zero = grid_of(least, most, scale_ptr.dtype.element_ty, KIND, BITS)
    tl.store(scale_ptr + cell, scale.to(scale_ptr.dtype.element_ty), mask=cell < cells)
    tl.store(inverse_ptr + cell, inverse, mask=cell < cells)
    tl.store(shift_ptr + cell, zero, mask=cell < cells)
    if zero_ptr is not None:
        tl.store(zero_ptr + cell, zero.to(tl.float16), mask=cell < cells)


# weight [n, k], inverse and shift [n or 1, groups] float32 -> codes [n, row_bytes] uint8
@triton.jit
def _encode(
    weight_ptr,
    codes_ptr,
    inverse_ptr,
    shift_ptr,
    levels_ptr,
    n,
    k,
    row_bytes,
    side_row,
    n_levels,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    across = (k + BLOCK_K - 1) // BLOCK_K
    row = tl.program_id(0) // across * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(0) % across * BLOCK_K
    col = first + tl.arange(0, BLOCK_K)[None, :]
    inside = (row[:, None] < n) & (col < k)
    side = row.to(tl.int64)[:, None] * side_row
    mask = row[:, None] < n
    if GROUP > 0:
        side += col // GROUP
        mask = inside
    inverse = tl.load(inverse_ptr + side, mask=mask, other=0.0)
    shift = inverse
    if shift_ptr is not None:
        shift = tl.load(shift_ptr + side, mask=mask, other=0.0)
    w = weights_at(weight_ptr, row.to(tl.int64)[:, None] * k + col, inside)
    code = codes_under(w, inverse, shift, levels_ptr, n_levels, KIND, BITS)
    start = first * BITS // 8
    left = tl.where(row < n, row_bytes - start, 0)
    store_codes(codes_ptr + row.to(tl.int64) * row_bytes + start, tl.where(inside, code, 0), left, BITS)


def _kernel(fn: Any, key: tuple[str, ...]) -> Kernel:
    configs = tuple(triton.Config({"enable_fp_fusion": False}, num_warps=warps) for warps in (4, 8))
    return Kernel(fn, configs=configs, slow=triton.Config({}), key=key)


QUANTIZE = _kernel(_quantize, ("n", "k", "KIND", "BITS", "GROUP"))
SIDES = _kernel(_sides, ("cells", "pieces", "KIND", "BITS"))
EXTREMES = _kernel(_extremes, ("n", "k", "GROUP"))
ENCODE = _kernel(_encode, ("n", "k", "KIND", "BITS", "GROUP"))
