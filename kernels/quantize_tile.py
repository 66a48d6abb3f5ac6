"""Parts of the quantizing kernels: weights as they count, scales and zeros of groups, codes, and their packing.

x is rounded half to even by adding and subtracting 1.5 * 2**23, which also leaves the whole number in the low bits of
the sum, without a conversion. That holds only where nothing is contracted (`enable_fp_fusion=False`); divisions are
IEEE's. The functions here are Triton's; they are called from the kernels of other modules.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["MAGIC", "codes_under", "grid_of", "inverse_of", "rank_of", "store_codes", "weights_at"]

SMALLEST = tl.constexpr(2.0**-100)  # smaller magnitudes count as zero
TINY = tl.constexpr(2.0**-126)  # the smallest normal number
MAGIC = tl.constexpr(12582912.0)
HUGE = tl.constexpr(2.0**127)


@triton.jit
def weights_at(weight_ptr, at, inside):
    # float32 weights, 0 outside and for magnitudes that count as zero, of which float16 has none
    w = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if weight_ptr.dtype.element_ty != tl.float16:
        w = tl.where(tl.abs(w) < SMALLEST, 0.0, w)
    return w


@triton.jit
def inverse_of(scale):
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
def grid_of(low, high, ELEMENT: tl.constexpr, KIND: tl.constexpr, BITS: tl.constexpr):
    # extremes [A] of groups (the largest magnitude twice on a symmetric grid) -> scale as stored, inverse, zero
    zero = tl.full(high.shape, 1.0 * (1 << (BITS - 1)), tl.float32)
    if KIND == "codebook":
        scale = _stored(high, ELEMENT)
        inverse = inverse_of(high)
    elif KIND == "symmetric":
        scale = _stored(tl.math.div_rn(high, tl.full(high.shape, (1 << (BITS - 1)) - 1.0, tl.float32)), ELEMENT)
        inverse = inverse_of(scale)
    elif KIND == "mx":  # the power of two of the largest magnitude less that of 6, the largest number of E2M1
        power = tl.maximum(((high.to(tl.int32, bitcast=True) >> 23) & 255) - 2, 0)
        scale = power.to(tl.float32)  # in its code, which counts from 2**-127
        inverse = ((254 - power) << 23).to(tl.float32, bitcast=True)
    else:
        low = tl.minimum(low, 0.0)
        span = tl.maximum(high, 0.0) - low
        scale = _stored(tl.math.div_rn(span, tl.full(span.shape, (1 << BITS) - 1.0, tl.float32)), ELEMENT)
        inverse = inverse_of(scale)
        zero = (low * -1.0) * inverse
        if KIND == "integer":
            zero = tl.minimum(tl.maximum((zero + MAGIC) - MAGIC, 0.0), (1 << BITS) - 1.0)
        else:
            # the minima are without effect, but AMD's compiler fuses a conversion with the product or sum beside it
            zero = tl.minimum(tl.minimum(zero, HUGE).to(tl.float16).to(tl.float32), HUGE)
    return scale, inverse, zero


@triton.jit
def _cut(levels_ptr, j, n_levels):
    # threshold j, infinite beyond the table
    has = j + 1 < n_levels
    low = tl.load(levels_ptr + j, mask=has, other=float("inf")).to(tl.float32)
    return (low + tl.load(levels_ptr + j + 1, mask=has, other=float("inf")).to(tl.float32)) * 0.5


@triton.jit
def rank_of(x, levels_ptr, n_levels, BITS: tl.constexpr):
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
def codes_under(w, inverse, shift, levels_ptr, n_levels, KIND: tl.constexpr, BITS: tl.constexpr):
    # codes [A, B] int32 of w under inverse and shift [A, 1 or B]
    x = w * inverse
    if KIND == "codebook":
        code = rank_of(x, levels_ptr, n_levels, BITS)
    elif KIND == "mx":  # sign and magnitude, ties to the even one
        size = tl.abs(x)
        code = (size > 0.25).to(tl.int32) + (size >= 0.75).to(tl.int32) + (size > 1.25).to(tl.int32)
        code += (size >= 1.75).to(tl.int32) + (size > 2.5).to(tl.int32) + (size >= 3.5).to(tl.int32)
        code += (size > 5.0).to(tl.int32)
        code += tl.where((x < 0) & (code > 0), 8, 0)
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
def store_codes(base, code, bytes, BITS: tl.constexpr):
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
