"""How a tile of a sparse weight is read inside a kernel: two of every four weights, or those that a mask keeps.

Of 2:4 weights the kept ones may be 4-bit codes on an even grid: (code - 8) * scale. The place of a kept weight among
the values of a bit mask is the number of bits before it, counted on from those of `kernels.sparse_starts`. The
functions here are Triton's; they are called from the kernels of `kernels.sparse_products`.
Ranks of the bits of a byte, as sums by one multiplication: Knuth, The Art of Computer Programming 4A, section 7.1.3.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.decoding import codes_of

__all__ = ["bytes_of", "dense_of_pairs", "masked_of", "pairs_of", "ranks_of", "scales_of"]


@triton.jit
def pairs_of(
    indices_ptr,
    values_ptr,
    row,
    first,
    n,
    kept,
    index_bytes,
    value_row,
    CODES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HALF: tl.constexpr,
):
    # kept weights first .. first + HALF of each row: their places 0..3 in fours of columns, [BLOCK_N, HALF] int32, and
    # their values before the scale, float32; finite outside. Codes lie in bytes (CODES 1) or in 16-bit words (2): four
    # of them and their places go into one word, so that they need not be moved between threads to come together
    if CODES == 0:
        place = codes_of(indices_ptr, row, first, n, index_bytes, 2, BLOCK_N, HALF)
        j = first + tl.arange(0, HALF)[None, :]
        at = row.to(tl.int64)[:, None] * value_row + j
        w = tl.load(values_ptr + at, mask=(row[:, None] < n) & (j < kept), other=0.0).to(tl.float32)
    else:
        four = first // 4 + tl.arange(0, HALF // 4)[None, :]
        at = row.to(tl.int64)[:, None] * index_bytes + four
        word = tl.load(indices_ptr + at, mask=(row[:, None] < n) & (four < index_bytes), other=0).to(tl.int32) << 16
        if CODES == 2:
            at = row.to(tl.int64)[:, None] * value_row + four
            word |= (
                tl.load(values_ptr + at, mask=(row[:, None] < n) & (four < value_row), other=0).to(tl.int32) & 0xFFFF
            )
        else:
            at = row.to(tl.int64)[:, None] * value_row + 2 * four
            word |= tl.load(values_ptr + at, mask=(row[:, None] < n) & (2 * four < value_row), other=0).to(tl.int32)
            more = (row[:, None] < n) & (2 * four + 1 < value_row)
            word |= tl.load(values_ptr + at + 1, mask=more, other=0).to(tl.int32) << 8
        t = tl.arange(0, 4)
        place = (word[:, :, None] >> (22 - 2 * t)[None, None, :]) & 3
        code = (word[:, :, None] >> (4 - 4 * (t % 2) + 8 * (t // 2))[None, None, :]) & 15
        place = tl.reshape(place, (BLOCK_N, HALF))
        w = tl.reshape((code - 8).to(tl.float32), (BLOCK_N, HALF))
    return place, w


@triton.jit
def scales_of(scale_ptr, row, first, n, kept, side_row, GROUP: tl.constexpr, PIECE: tl.constexpr, HALF: tl.constexpr):
    # scales of pieces of PIECE kept weights, [BLOCK_N, HALF / PIECE] float32, 0 outside
    j = first + PIECE * tl.arange(0, HALF // PIECE)[None, :]
    at = row.to(tl.int64)[:, None] * side_row + tl.full(j.shape, 0, tl.int64)
    if GROUP != 0:
        at += j // GROUP
    return tl.load(scale_ptr + at, mask=(row[:, None] < n) & (j < kept), other=0.0).to(tl.float32)


@triton.jit
def dense_of_pairs(place, w, BLOCK_N: tl.constexpr, HALF: tl.constexpr):
    # places 0..3 and weights of pairs [BLOCK_N, HALF] -> [BLOCK_N, 2 * HALF], zeros where nothing is kept
    p, q = tl.split(tl.reshape(place, (BLOCK_N, HALF // 2, 2)))
    v, u = tl.split(tl.reshape(w, (BLOCK_N, HALF // 2, 2)))
    none = tl.full(v.shape, 0.0, v.dtype)
    w0 = tl.where(p == 0, v, tl.where(q == 0, u, none))
    w1 = tl.where(p == 1, v, tl.where(q == 1, u, none))
    w2 = tl.where(p == 2, v, tl.where(q == 2, u, none))
    w3 = tl.where(p == 3, v, tl.where(q == 3, u, none))
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BLOCK_N, 2 * HALF))


@triton.jit
def masked_of(
    mask_ptr,
    values_ptr,
    before,
    row,
    start,
    n,
    kept,
    mask_bytes,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # `before` [BLOCK_N] int64 weights are kept before column `start` -> the tile [BLOCK_N, BLOCK_K] float32, and
    # `before` of the next one
    ahead, have, count = ranks_of(mask_ptr, before, row, start, n, kept, mask_bytes, BLOCK_N, BLOCK_K)
    w = tl.load(values_ptr + before[:, None] + ahead, mask=have, other=0.0).to(tl.float32)
    return w, before + count


@triton.jit
def ranks_of(mask_ptr, before, row, start, n, kept, mask_bytes, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    # of columns start .. start + BLOCK_K, with `before` [BLOCK_N] weights kept before them: how many are kept before
    # each of them and whether it is kept itself, [BLOCK_N, BLOCK_K]; and how many are kept in all, [BLOCK_N]
    bits, sums, count, last = bytes_of(mask_ptr, row, start, n, mask_bytes, BLOCK_K)
    shift = (28 - 4 * tl.arange(0, 8))[None, None, :]  # the first column is the highest bit
    ahead = last[:, :, None] - ((sums[:, :, None] >> shift) & 15)
    have = ((bits[:, :, None] >> shift) & 1) != 0
    ahead = tl.reshape(ahead, (BLOCK_N, BLOCK_K))
    left = tl.minimum(kept - before, BLOCK_K).to(tl.int32)[:, None]
    have = tl.reshape(have, (BLOCK_N, BLOCK_K)) & (ahead < left)
    return ahead, have, tl.sum(count, axis=1)


@triton.jit
def bytes_of(mask_ptr, row, start, n, mask_bytes, BLOCK_K: tl.constexpr):
    # the mask's bytes [BLOCK_N, BLOCK_K / 8] of columns start .. start + BLOCK_K: their bits, bit i at bit 4 i; in four
    # bits likewise how many are set up to bit i, which is from a column on; how many in all; how many up to their end
    byte_at = start // 8 + tl.arange(0, BLOCK_K // 8)[None, :]
    inside = (row[:, None] < n) & (byte_at < mask_bytes)
    byte = tl.load(mask_ptr + row.to(tl.int64)[:, None] * mask_bytes + byte_at, mask=inside, other=0).to(tl.int32)
    bits = (byte | (byte << 12)) & 0x000F000F
    bits = (bits | (bits << 6)) & 0x03030303
    bits = (bits | (bits << 3)) & 0x11111111
    sums = bits * 0x11111111
    count = (sums >> 28) & 15
    return bits, sums, count, tl.cumsum(count, axis=1)
