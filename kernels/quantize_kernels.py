"""The kernels under `kernels.quantize`: fused quantization, extremes of groups, codes under given scales.

Nothing is contracted (`enable_fp_fusion=False`) and divisions are IEEE's. x is rounded half to even by adding and
subtracting 1.5 * 2**23, which also leaves the whole number in the low bits of the sum, without a conversion.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from kernels.tuning import Kernel

__all__ = ["ENCODE", "EXTREMES", "QUANTIZE", "SIDES"]

SMALLEST = tl.constexpr(2.0**-100)  # smaller magnitudes count as zero
TINY = tl.constexpr(2.0**-126)  # the smallest normal number
MAGIC = tl.constexpr(12582912.0)


@triton.jit
def _weights(weight_ptr, at, inside):
    # float32 weights, 0 outside and for magnitudes that count as zero, of which float16 has none
    w = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if weight_ptr.dtype.element_ty != tl.float16:
        w = tl.where(tl.abs(w) < SMALLEST, 0.0, w)
    return w


@triton.jit
def _inverse(scale):
    usable = scale > TINY
    one = tl.full(scale.shape, 1.0, tl.float32)
    return tl.where(usable, tl.math.div_rn(one, tl.where(usable, scale, 1.0)), 0.0)


@triton.jit
def _stored(value, ELEMENT: tl.constexpr):
    # a non-negative float32 as it reads back from the dtype ELEMENT; Triton's interpreter would truncate to bfloat16
    if ELEMENT == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        value = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    elif ELEMENT == tl.float16:
        value = value.to(tl.float16).to(tl.float32)
    return value


@triton.jit
def _grid(low, high, ELEMENT: tl.constexpr, KIND: tl.constexpr, BITS: tl.constexpr):
    # extremes [A] of groups (the largest magnitude twice on a symmetric grid) -> scale as stored, inverse, zero
    zero = tl.full(high.shape, 1.0 * (1 << (BITS - 1)), tl.float32)
    if KIND == "codebook":
        scale = _stored(high, ELEMENT)
        inverse = _inverse(high)
    elif KIND == "symmetric":
        scale = _stored(tl.math.div_rn(high, tl.full(high.shape, (1 << (BITS - 1)) - 1.0, tl.float32)), ELEMENT)
        inverse = _inverse(scale)
    else:
        low = tl.minimum(low, 0.0)
        span = tl.maximum(high, 0.0) - low
        scale = _stored(tl.math.div_rn(span, tl.full(span.shape, (1 << BITS) - 1.0, tl.float32)), ELEMENT)
        inverse = _inverse(scale)
        zero = (low * -1.0) * inverse
        if KIND == "integer":
            zero = tl.minimum(tl.maximum((zero + MAGIC) - MAGIC, 0.0), (1 << BITS) - 1.0)
        else:
            zero = zero.to(tl.float16).to(tl.float32)
    return scale, inverse, zero


@triton.jit
def _cut(levels_ptr, j, n_levels):
    # threshold j, infinite beyond the table
    has = j + 1 < n_levels
    low = tl.load(levels_ptr + j, mask=has, other=float("inf")).to(tl.float32)
    return (low + tl.load(levels_ptr + j + 1, mask=has, other=float("inf")).to(tl.float32)) * 0.5


@triton.jit
def _rank(x, levels_ptr, n_levels, BITS: tl.constexpr):
    # how many thresholds lie below x [A, B]: by counting, by halving with selects, or by halving with look-ups
    if BITS < 4:
        code = tl.full(x.shape, 0, tl.int32)
        for j in tl.static_range((1 << BITS) - 1):
            code += (x > _cut(levels_ptr, j, n_levels)).to(tl.int32)
    elif BITS == 4:
        c0, c1, c2 = _cut(levels_ptr, 0, n_levels), _cut(levels_ptr, 1, n_levels), _cut(levels_ptr, 2, n_levels)
        c3, c4, c5 = _cut(levels_ptr, 3, n_levels), _cut(levels_ptr, 4, n_levels), _cut(levels_ptr, 5, n_levels)
        c6, c7, c8 = _cut(levels_ptr, 6, n_levels), _cut(levels_ptr, 7, n_levels), _cut(levels_ptr, 8, n_levels)
        c9, c10, c11 = _cut(levels_ptr, 9, n_levels), _cut(levels_ptr, 10, n_levels), _cut(levels_ptr, 11, n_levels)
        c12, c13, c14 = _cut(levels_ptr, 12, n_levels), _cut(levels_ptr, 13, n_levels), _cut(levels_ptr, 14, n_levels)
        a = x > c7
        b = x > tl.where(a, c11, c3)
        c = x > tl.where(a, tl.where(b, c13, c9), tl.where(b, c5, c1))
        upper = tl.where(b, tl.where(c, c14, c12), tl.where(c, c10, c8))
        lower = tl.where(b, tl.where(c, c6, c4), tl.where(c, c2, c0))
        d = x > tl.where(a, upper, lower)
        code = tl.where(a, 8, 0) + tl.where(b, 4, 0) + tl.where(c, 2, 0) + tl.where(d, 1, 0)
    else:
        cuts = _cut(levels_ptr, tl.arange(0, 1 << BITS), n_levels)
        flat = tl.reshape(x, (x.shape[0] * x.shape[1],))
        code = tl.full(flat.shape, 0, tl.int32)
        for i in tl.static_range(BITS):
            code += tl.where(flat > tl.gather(cuts, code + ((1 << (BITS - 1 - i)) - 1), 0), 1 << (BITS - 1 - i), 0)
        code = tl.reshape(code, (x.shape[0], x.shape[1]))
    return code


@triton.jit
def _code(w, inverse, shift, levels_ptr, n_levels, KIND: tl.constexpr, BITS: tl.constexpr):
    # codes [A, B] int32 of w under inverse and shift [A, 1 or B]
    x = w * inverse
    if KIND == "codebook":
        code = _rank(x, levels_ptr, n_levels, BITS)
    else:
        if KIND == "float":
            y = x + shift
        elif KIND == "whole":
            y = x
        else:
            y = (x + MAGIC) - MAGIC + shift
        least = 1.0 if KIND == "symmetric" else 0.0
        y = tl.minimum(tl.maximum(y, least), (1 << BITS) - 1.0)
        code = (y + MAGIC).to(tl.int32, bitcast=True) & 255
    return code


@triton.jit
def _store_codes(base, code, bytes, BITS: tl.constexpr):
    # pack code [A, B], B a multiple of 8, most significant bit first, into `bytes` [A] bytes from base [A]
    A: tl.constexpr = code.shape[0]
    B: tl.constexpr = code.shape[1]
    if 8 % BITS == 0:
        at = tl.arange(0, B * BITS // 8)[None, :]
        if BITS < 8:
            shift = 8 - BITS - BITS * tl.arange(0, 8 // BITS)
            code = tl.sum(tl.reshape(code, (A, B * BITS // 8, 8 // BITS)) << shift[None, None, :], axis=2)
        tl.store(base[:, None] + at, code.to(tl.uint8), mask=at < bytes[:, None])
    else:
        wide = tl.int32 if BITS == 3 else tl.int64
        shift = (BITS * (7 - tl.arange(0, 8))).to(wide)
        word = tl.sum(tl.reshape(code.to(wide), (A, B // 8, 8)) << shift[None, None, :], axis=2)
        for j in tl.static_range(BITS):
            at = tl.arange(0, B // 8)[None, :] * BITS + j
            tl.store(base[:, None] + at, ((word >> (8 * (BITS - 1 - j))) & 255).to(tl.uint8), mask=at < bytes[:, None])


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
    w = _weights(weight_ptr, row.to(tl.int64)[:, None] * k + col, inside)
    if (KIND == "codebook") or (KIND == "symmetric"):
        high = tl.max(tl.abs(w), axis=1)
        low = high
    else:
        low, high = tl.min(w, axis=1), tl.max(w, axis=1)
    scale, inverse, zero = _grid(low, high, scale_ptr.dtype.element_ty, KIND, BITS)
    if KIND == "integer":
        packed = tl.where(real, (zero + MAGIC).to(tl.int32, bitcast=True) & 255, 0)
        rows = first_row + tl.arange(0, BLOCK_N)
        start = first * BITS // 8
        left = tl.where(rows < n, zero_bytes - start, 0)
        base = zero_ptr + rows.to(tl.int64) * zero_bytes + start
        _store_codes(base, tl.reshape(packed, (BLOCK_N, BLOCK_G)), left, BITS)
    elif KIND == "float":
        tl.store(zero_ptr + row.to(tl.int64) * groups + group, zero.to(tl.float16), mask=real)
    tl.store(scale_ptr + row.to(tl.int64) * groups + group, scale.to(scale_ptr.dtype.element_ty), mask=real)
    code = _code(w, inverse[:, None], zero[:, None], levels_ptr, n_levels, KIND, BITS)
    start = group * GROUP * BITS // 8
    left = tl.where(real, tl.minimum(row_bytes - start, (GROUP * BITS + 7) // 8), 0)
    _store_codes(codes_ptr + row.to(tl.int64) * row_bytes + start, tl.where(inside, code, 0), left, BITS)


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
        w = _weights(weight_ptr, row[:, None] * k + col, (row[:, None] < n) & (lane < GROUP) & (col < k))
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
    if (KIND == "codebook") or (KIND == "symmetric"):
        most = tl.maximum(least * -1.0, most)
    scale, inverse, zero = _grid(least, most, scale_ptr.dtype.element_ty, KIND, BITS)
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
    w = _weights(weight_ptr, row.to(tl.int64)[:, None] * k + col, inside)
    code = _code(w, inverse, shift, levels_ptr, n_levels, KIND, BITS)
    start = first * BITS // 8
    left = tl.where(row < n, row_bytes - start, 0)
    _store_codes(codes_ptr + row.to(tl.int64) * row_bytes + start, tl.where(inside, code, 0), left, BITS)


def _kernel(fn: Any, key: tuple[str, ...]) -> Kernel:
    configs = tuple(triton.Config({"enable_fp_fusion": False}, num_warps=warps) for warps in (4, 8))
    return Kernel(fn, configs=configs, slow=triton.Config({}), key=key)


QUANTIZE = _kernel(_quantize, ("n", "k", "KIND", "BITS", "GROUP"))
SIDES = _kernel(_sides, ("cells", "pieces", "KIND", "BITS"))
EXTREMES = _kernel(_extremes, ("n", "k", "GROUP"))
ENCODE = _kernel(_encode, ("n", "k", "KIND", "BITS", "GROUP"))
