"""How the kept weights of a sparse weight are read inside a kernel: floating ones, or codes of any width.

    value = (u - zero[g]) * scale[g]      u a level of a table, or a code on a uniform grid; g its group among the kept

Those of n:m weights lie by rows, and a row is read from left to right; those that a mask keeps lie in one row, and each
is read where the number of bits before it says. The functions here are Triton's; they are called from the kernels of
`kernels.sparse_coded` and `kernels.sparse_dequantize`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.decoding import scales_at, units_of
from kernels.sparse_tile import dense_of_pairs

__all__ = ["coded_at", "dense_of_cells", "kept_of", "piece_scales"]


@triton.jit
def kept_of(
    values_ptr,
    levels_ptr,
    zero_ptr,
    table,
    planes,
    row,
    first,
    n,
    kept,
    value_row,
    side_row,
    n_levels,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    PIECE: tl.constexpr,
    CENTRE: tl.constexpr,
    PTX: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
):
    # kept weights first .. first + WIDTH of each row before their scale, [BLOCK_N, WIDTH] float32; finite outside.
    # Groups have PIECE in common; BITS 0 stands for floating values
    if BITS == 0:
        j = first + tl.arange(0, WIDTH)[None, :]
        at = row.to(tl.int64)[:, None] * value_row + j
        w = tl.load(values_ptr + at, mask=(row[:, None] < n) & (j < kept), other=0.0).to(tl.float32)
    else:
        w = units_of(
            values_ptr, levels_ptr, table, planes, row, first, n, value_row, n_levels,
            BITS, ROWS, PTX, CENTRE, UNIT, BLOCK_N, WIDTH,
        ).to(tl.float32)  # fmt: skip
        if zero_ptr is not None:
            at, inside = _pieces(row, first, n, kept, side_row, GROUP, PIECE, WIDTH)
            z = tl.load(zero_ptr + at, mask=inside, other=0.0).to(tl.float32) - CENTRE
            w = tl.reshape(tl.reshape(w, (BLOCK_N, WIDTH // PIECE, PIECE)) - z[:, :, None], (BLOCK_N, WIDTH))
    return w


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


@triton.jit
def coded_at(
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
        bit = (at % 8).to(tl.int32) * BITS
        byte_at = at // 8 * BITS + bit // 8
        word = tl.load(values_ptr + byte_at, mask=have, other=0).to(tl.int32) << 8
        if 8 % BITS != 0:
            more = have & (bit % 8 + BITS > 8)
            word |= tl.load(values_ptr + byte_at + 1, mask=more, other=0).to(tl.int32)
        code = (word >> (16 - BITS - bit % 8)) & ((1 << BITS) - 1)
        if levels_ptr is None:
            w = code.to(tl.float32) - CENTRE
        else:
            w = tl.reshape(tl.gather(table, tl.reshape(code, (BLOCK_N * BLOCK_K,)), 0), (BLOCK_N, BLOCK_K))
        side = at.to(tl.int64) // GROUP if GROUP != 0 else at.to(tl.int64) * 0
        if zero_ptr is not None:
            w -= tl.load(zero_ptr + side, mask=have, other=0.0).to(tl.float32) - CENTRE
        if scale_ptr is not None:
            w *= scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, side, have, NEST)
        w = tl.where(have, w, 0.0)
    return w
