"""How a tile of a weight under a bit mask is read inside a kernel: floating values, or codes of any width.

    value = (u - zero[g]) * scale[g]      u a level of a table, or a code on a uniform grid; g its group among the kept

The kept weights lie in one row, each where the number of bits before it says (`kernels.sparse_tile`). The codes of up
to 4 bits that a byte of the mask keeps are at most 32 bits side by side: they are read into one word, from which each
of eight columns takes its own by the number of bits set from it on. They are of two groups at most. Others are gathered
one by one. The functions here are Triton's; they are called from the kernels of other modules.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.decoding import scales_at
from kernels.sparse_tile import bytes_of, ranks_of

__all__ = ["masked_weights"]


@triton.jit
def masked_weights(
    mask_ptr,
    values_ptr,
    levels_ptr,
    scale_ptr,
    nest_levels_ptr,
    nest_scale_ptr,
    nest_offset_ptr,
    zero_ptr,
    table,
    before,
    row,
    start,
    n,
    kept,
    mask_bytes,
    value_bytes,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    NEST: tl.constexpr,
    CENTRE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # `before` [BLOCK_N] weights are kept before column `start` -> the tile [BLOCK_N, BLOCK_K] float32, 0 for what is
    # not kept, and how many are kept in it, [BLOCK_N]
    if (BITS > 0) and (BITS <= 4) and ((GROUP == 0) or (GROUP >= 8)):
        bits, sums, count, last = bytes_of(mask_ptr, row, start, n, mask_bytes, BLOCK_K)
        first = before[:, None] + (last - count)
        window = _window(values_ptr, first, count, value_bytes, BITS)
        shift = (28 - 4 * tl.arange(0, 8))[None, None, :]  # the first column is the highest bit
        left = (sums[:, :, None] >> shift) & 15  # kept ones from this column on, of which it is the first
        have = ((bits[:, :, None] >> shift) & 1) != 0
        code = (window[:, :, None] >> ((BITS * left) & 31)) & ((1 << BITS) - 1)
        if levels_ptr is None:  # 2**23 + code is a float32 whose last bits are the code
            w = (code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + CENTRE)
        else:
            flat = tl.reshape(code, (BLOCK_N * BLOCK_K,))
            w = tl.reshape(tl.gather(table, flat, 0), (BLOCK_N, BLOCK_K // 8, 8))
        if (zero_ptr is not None) or (scale_ptr is not None):
            group = first // GROUP if GROUP != 0 else first * 0
            at = group.to(tl.int64)
            over = count - (group * GROUP + GROUP - first).to(tl.int32)  # how many are of the next group
            next_has = (over > 0) & (count > 0)
            if zero_ptr is not None:
                z = (tl.load(zero_ptr + at, mask=count > 0, other=0.0).to(tl.float32) - CENTRE)[:, :, None]
                if GROUP != 0:
                    z_next = tl.load(zero_ptr + at + 1, mask=next_has, other=0.0).to(tl.float32) - CENTRE
                    z = tl.where(left <= over[:, :, None], z_next[:, :, None], z)
                w -= z
            if scale_ptr is not None:
                s = scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, at, count > 0, NEST)
                s = s[:, :, None]
                if GROUP != 0:
                    s_next = scales_at(
                        scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, at + 1, next_has, NEST
                    )
                    s = tl.where(left <= over[:, :, None], s_next[:, :, None], s)
                w *= s
        w = tl.reshape(tl.where(have, w, 0.0), (BLOCK_N, BLOCK_K))
        total = tl.sum(count, axis=1)
    else:
        ahead, have, total = ranks_of(mask_ptr, before, row, start, n, kept, mask_bytes, BLOCK_N, BLOCK_K)
        w = _gathered(
            values_ptr, levels_ptr, scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, zero_ptr,
            table, before[:, None] + ahead, have, BITS, GROUP, NEST, CENTRE, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    return w, total


@triton.jit
def _window(values_ptr, first, count, value_bytes, BITS: tl.constexpr):
    # codes first .. first + count of the one row, up to 8, in a word: the last but i at bit BITS * (i + 1), modulo 32
    bit = (first & 7).to(tl.int32) * BITS
    at = (first >> 3) * BITS + (bit >> 3)
    ahead = bit & 7  # bits of the first byte that belong to codes before
    word = tl.full(count.shape, 0, tl.int32)
    for i in tl.static_range(4):
        if 8 * i < 8 * BITS + 7:
            inside = (count > 0) & (at + i < value_bytes)
            byte = tl.load(values_ptr + at + i, mask=inside, other=0).to(tl.int32)
            word |= byte << (24 - 8 * i)
    word = word << ahead
    if BITS == 4:  # half of a fifth byte
        inside = (count > 0) & (ahead > 0) & (at + 4 < value_bytes)
        word |= tl.load(values_ptr + at + 4, mask=inside, other=0).to(tl.int32) >> 4
    word = word >> ((32 - BITS * count) & 31)
    turned = word << BITS
    if BITS == 4:
        turned |= (word >> 28) & 15
    return turned


@triton.jit
def _gathered(
    values_ptr,
    levels_ptr,
    scale_ptr,
    nest_levels_ptr,
    nest_scale_ptr,
    nest_offset_ptr,
    zero_ptr,
    table,
    at,
    have,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    NEST: tl.constexpr,
    CENTRE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # kept weights `at` of the one row that they lie in, [BLOCK_N, BLOCK_K] float32, 0 where there is none to `have`
    if BITS == 0:
        w = tl.load(values_ptr + at, mask=have, other=0.0).to(tl.float32)
    else:
        bit = (at & 7).to(tl.int32) * BITS
        byte_at = (at >> 3) * BITS + (bit >> 3)
        word = tl.load(values_ptr + byte_at, mask=have, other=0).to(tl.int32) << 8
        if 8 % BITS != 0:
            more = have & ((bit & 7) + BITS > 8)
            word |= tl.load(values_ptr + byte_at + 1, mask=more, other=0).to(tl.int32)
        code = (word >> (16 - BITS - (bit & 7))) & ((1 << BITS) - 1)
        if levels_ptr is None:
            w = code.to(tl.float32) - CENTRE
        else:
            w = tl.reshape(tl.gather(table, tl.reshape(code, (BLOCK_N * BLOCK_K,)), 0), (BLOCK_N, BLOCK_K))
        side = at // GROUP if GROUP != 0 else at * 0
        if zero_ptr is not None:
            w -= tl.load(zero_ptr + side, mask=have, other=0.0).to(tl.float32) - CENTRE
        if scale_ptr is not None:
            w *= scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, side.to(tl.int64), have, NEST)
        w = tl.where(have, w, 0.0)
    return w
