"""How a tile of a block-sparse weight is read inside a kernel: where its blocks lie, and what is in them.

A block lies in one piece among the kept ones, row by row, at the number of blocks that are kept before it: the count
before its byte of the mask (`kernels.sparse_starts`), and the bits of that byte to its left. A tile is a list of blocks
that are read as rows of the matrix of kept blocks, so codes of every kind are decoded as those of a dense weight are.

    value = (u - zero[g]) * scale[g]      u a level of a table, or a code on a uniform grid; g its group in the block

The functions here are Triton's; they are called from the kernels of `kernels.blocks_products`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.decoding import row_planes, scales_at, table_of, units_of

__all__ = ["columns_of_blocks", "places_of", "rows_of_blocks", "weights_of_blocks"]


@triton.jit
def places_of(mask_ptr, starts_ptr, down, across, kept, blocks_down, mask_bytes):
    # blocks at down, across [TILE] -> where each lies among the kept ones; `kept` for one that is not
    inside = (down < blocks_down) & (across < 8 * mask_bytes)
    at = down.to(tl.int64) * mask_bytes + across // 8
    byte = tl.load(mask_ptr + at, mask=inside, other=0).to(tl.int32)
    start = tl.load(starts_ptr + at, mask=inside, other=0)
    left = byte >> (8 - across % 8)  # the first block is the highest bit
    left = left - ((left >> 1) & 0x55)
    left = (left & 0x33) + ((left >> 2) & 0x33)
    left = (left + (left >> 4)) & 15
    have = ((byte >> (7 - across % 8)) & 1) != 0
    return tl.where(have, start + left, kept)


@triton.jit
def weights_of_blocks(
    values_ptr,
    levels_ptr,
    scale_ptr,
    nest_levels_ptr,
    nest_scale_ptr,
    nest_offset_ptr,
    zero_ptr,
    place,
    kept,
    value_row,
    side_row,
    n_levels,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    NEST: tl.constexpr,
    PIECE: tl.constexpr,
    CENTRE: tl.constexpr,
    PTX: tl.constexpr,
    DTYPE: tl.constexpr,
    TILE: tl.constexpr,
    SIZE: tl.constexpr,
):
    # the kept blocks place[TILE], [TILE, SIZE] float32, 0 where none is kept. Groups have PIECE in common; BITS 0
    # stands for floating values; PTX decodes to DTYPE
    have = place[:, None] < kept
    if BITS == 0:
        at = place.to(tl.int64)[:, None] * value_row + tl.arange(0, SIZE)[None, :]
        w = tl.load(values_ptr + at, mask=have, other=0.0).to(tl.float32)
    else:
        unit: tl.constexpr = DTYPE if PTX else tl.float32
        w = units_of(
            values_ptr, levels_ptr, table_of(levels_ptr, n_levels, BITS, unit),
            row_planes(levels_ptr, place, kept, n_levels, unit, 0, PTX),
            place, 0, kept, value_row, n_levels, BITS, ROWS, PTX, CENTRE, unit, TILE, SIZE,
        ).to(tl.float32)  # fmt: skip
        piece = tl.arange(0, SIZE // PIECE)[None, :]
        at = place.to(tl.int64)[:, None] * side_row + piece * 0
        if GROUP != 0:
            at += PIECE * piece // GROUP
        w = tl.reshape(w, (TILE, SIZE // PIECE, PIECE))
        if zero_ptr is not None:
            z = tl.load(zero_ptr + at, mask=have, other=0.0).to(tl.float32) - CENTRE
            w -= z[:, :, None]
        if scale_ptr is None:
            w = tl.where(have[:, :, None], w, 0.0)
        else:
            s = scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, at, have, NEST)
            if NEST > 0:  # their offset is added everywhere
                s = tl.where(have, s, 0.0)
            w *= s[:, :, None]
        w = tl.reshape(w, (TILE, SIZE))
    return w


@triton.jit
def rows_of_blocks(w, DOWN: tl.constexpr, ACROSS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    # blocks [DOWN * ACROSS, HEIGHT * WIDTH] -> the tile [DOWN * HEIGHT, ACROSS * WIDTH]
    w = tl.permute(tl.reshape(w, (DOWN, ACROSS, HEIGHT, WIDTH)), (0, 2, 1, 3))
    return tl.reshape(w, (DOWN * HEIGHT, ACROSS * WIDTH))


@triton.jit
def columns_of_blocks(w, DOWN: tl.constexpr, ACROSS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    # blocks [DOWN * ACROSS, HEIGHT * WIDTH] -> the tile turned, [ACROSS * WIDTH, DOWN * HEIGHT]
    w = tl.permute(tl.reshape(w, (DOWN, ACROSS, HEIGHT, WIDTH)), (1, 3, 0, 2))
    return tl.reshape(w, (ACROSS * WIDTH, DOWN * HEIGHT))
