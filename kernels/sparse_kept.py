"""How the kept weights of an n:m weight are read inside a kernel, floating ones or codes of any width, and spread out.

    value = (u - zero[g]) * scale[g]      u a level of a table, or a code on a uniform grid; g its group among the kept

They lie by rows, and a row is read from left to right. The functions here are Triton's; they are called from the
kernels of `kernels.sparse_coded` and `kernels.sparse_dequantize`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.decoding import codes_of, planes_of, scales_at, table_of, units_of
from kernels.sparse_tile import dense_of_pairs

__all__ = ["cells_of", "dense_of_cells", "piece_scales"]


@triton.jit
def cells_of(
    indices_ptr,
    values_ptr,
    levels_ptr,
    zero_ptr,
    row,
    first,
    n,
    kept,
    index_bytes,
    value_row,
    side_row,
    n_levels,
    OF: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    PIECE: tl.constexpr,
    CENTRE: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
):
    # kept weights first .. first + WIDTH of each row: their places in cells of OF columns, [BLOCK_N, WIDTH] int32, and
    # their values before the scale, float32; finite outside. Groups have PIECE in common; BITS 0 stands for floating
    # values. With WORDS the 4-bit codes lie in 32-bit words: eight of them and their places go through the threads
    # together
    wide: tl.constexpr = 2 if OF == 4 else 3  # bits of a place
    table = table_of(levels_ptr, n_levels, BITS, tl.float32)
    if WORDS:
        eight = first // 8 + tl.arange(0, WIDTH // 8)[None, :]
        at = row.to(tl.int64)[:, None] * value_row + eight
        inside = (row[:, None] < n) & (eight < value_row)
        both = tl.load(values_ptr + at, mask=inside, other=0).to(tl.int64) & 0xFFFFFFFF
        at = row.to(tl.int64)[:, None] * index_bytes + eight * wide
        for i in tl.static_range(wide):
            inside = (row[:, None] < n) & (eight * wide + i < index_bytes)
            byte = tl.load(indices_ptr + at + i, mask=inside, other=0).to(tl.int64)
            both |= byte << (32 + 8 * (wide - 1 - i))
        t = tl.arange(0, 8)[None, None, :]
        place = ((both >> 32).to(tl.int32)[:, :, None] >> (wide * (7 - t))) & (OF - 1)
        code = (both.to(tl.int32)[:, :, None] >> (4 - 4 * (t % 2) + 8 * (t // 2))) & 15
        place, code = tl.reshape(place, (BLOCK_N, WIDTH)), tl.reshape(code, (BLOCK_N, WIDTH))
        if levels_ptr is None:  # 2**23 + code is a float32 whose last bits are the code
            w = (code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + CENTRE)
        else:
            w = tl.reshape(tl.gather(table, tl.reshape(code, (BLOCK_N * WIDTH,)), 0), (BLOCK_N, WIDTH))
    else:
        place = codes_of(indices_ptr, row, first, n, index_bytes, wide, BLOCK_N, WIDTH)
        if BITS == 0:
            j = first + tl.arange(0, WIDTH)[None, :]
            at = row.to(tl.int64)[:, None] * value_row + j
            w = tl.load(values_ptr + at, mask=(row[:, None] < n) & (j < kept), other=0.0).to(tl.float32)
        else:
            w = units_of(
                values_ptr, levels_ptr, table, planes_of(levels_ptr, n_levels, tl.float32, False),
                row, first, n, value_row, n_levels, BITS, ROWS, False, CENTRE, tl.float32, BLOCK_N, WIDTH,
            )  # fmt: skip
    if zero_ptr is not None:
        at, inside = _pieces(row, first, n, kept, side_row, GROUP, PIECE, WIDTH)
        z = tl.load(zero_ptr + at, mask=inside, other=0.0).to(tl.float32) - CENTRE
        w = tl.reshape(tl.reshape(w, (BLOCK_N, WIDTH // PIECE, PIECE)) - z[:, :, None], (BLOCK_N, WIDTH))
    return place, w


@triton.jit
def piece_scales(
    scale_ptr,
    nest_levels_ptr,
    nest_scale_ptr,
    nest_offset_ptr,
    row,
    first,
    n,
    kept,
    side_row,
    GROUP: tl.constexpr,
    NEST: tl.constexpr,
    PIECE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    # scales of pieces of PIECE kept weights, [BLOCK_N, WIDTH / PIECE] float32, 0 outside
    at, inside = _pieces(row, first, n, kept, side_row, GROUP, PIECE, WIDTH)
    return scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, at, inside, NEST)


@triton.jit
def _pieces(row, first, n, kept, side_row, GROUP: tl.constexpr, PIECE: tl.constexpr, WIDTH: tl.constexpr):
    # where the scales of pieces lie, [BLOCK_N, WIDTH / PIECE] int64, and which of them there are
    j = first + PIECE * tl.arange(0, WIDTH // PIECE)[None, :]
    at = row.to(tl.int64)[:, None] * side_row + tl.full(j.shape, 0, tl.int64)
    if GROUP != 0:
        at += j // GROUP
    return at, (row[:, None] < n) & (j < kept)


@triton.jit
def dense_of_cells(place, w, OF: tl.constexpr, BLOCK_N: tl.constexpr, HALF: tl.constexpr):
    # places and weights [BLOCK_N, HALF], half of every OF columns, ascending -> [BLOCK_N, 2 * HALF] with zeros
    if OF == 4:
        dense = dense_of_pairs(place, w, BLOCK_N, HALF)
    else:
        even, odd = tl.split(tl.reshape(place, (BLOCK_N, HALF // 4, 2, 2)))
        a, c = tl.split(even)
        b, d = tl.split(odd)
        even, odd = tl.split(tl.reshape(w, (BLOCK_N, HALF // 4, 2, 2)))
        s, u = tl.split(even)
        t, v = tl.split(odd)
        none = tl.full(s.shape, 0.0, s.dtype)
        w0 = tl.where(a == 0, s, none)  # the first of four is never beyond place 4, the last never before place 3
        w1 = tl.where(a == 1, s, tl.where(b == 1, t, none))
        w2 = tl.where(a == 2, s, tl.where(b == 2, t, tl.where(c == 2, u, none)))
        w3 = tl.where(a == 3, s, tl.where(b == 3, t, tl.where(c == 3, u, tl.where(d == 3, v, none))))
        w4 = tl.where(a == 4, s, tl.where(b == 4, t, tl.where(c == 4, u, tl.where(d == 4, v, none))))
        w5 = tl.where(b == 5, t, tl.where(c == 5, u, tl.where(d == 5, v, none)))
        w6 = tl.where(c == 6, u, tl.where(d == 6, v, none))
        w7 = tl.where(d == 7, v, none)
        even = tl.join(tl.join(w0, w4), tl.join(w2, w6))
        odd = tl.join(tl.join(w1, w5), tl.join(w3, w7))
        dense = tl.reshape(tl.join(even, odd), (BLOCK_N, 2 * HALF))
    return dense
