"""Products with a block-sparse weight: a block that is not kept is neither read nor decoded.

    one row      y = x @ w.T, without the matrix unit: a program owns rows of blocks and sums what their blocks give
    more rows    y = x @ w.T, tile by tile on the matrix unit, the weight being the left operand
    turned       dx = dy @ w, the same with the tile turned: sums run down the rows of blocks

The columns (turned: the rows) are shared out among `splits` programs whose partial results are added up in their order.
Splits and steps follow from the weight and the dtype alone: row i of the product is the same, bit by bit, for any
number of rows from two on, and inside `kernels.launchers.rows_alike` from one.
Sources: Narang et al. 2017, arXiv 1711.02782; Gray et al. 2017 (block-sparse products), OpenAI; split sums: Hoque et
al. 2024, arXiv 2402.00025.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.blocks_tile import columns_of_blocks, places_of, rows_of_blocks, weights_of_blocks
from kernels.gemv import shares
from kernels.launchers import alone
from kernels.partials import add_up
from kernels.small import row_block
from kernels.tuning import Kernel, Launch

__all__ = ["blocks_multiply"]

STEP = 4096  # weights of a step for one row: 32 a thread


def blocks_multiply(x: Tensor, weight: Mapping[str, Any], *, turned: bool = False) -> Tensor:
    """x [..., k] @ w.T -> [..., n], or x [..., n] @ w -> [..., k] for `turned`; an empty batch launches nothing."""
    inside, outside = (weight["n"], weight["k"]) if turned else (weight["k"], weight["n"])
    flat = x.reshape(-1, inside)
    m = flat.shape[0]
    out = torch.empty(m, outside, dtype=x.dtype, device=x.device)
    if m and alone(m) and not turned:
        _gemv(flat, out, weight)
    elif m:
        _small(flat, out, weight, turned)
    return out.view(*x.shape[:-1], outside)


def _gemv(x: Tensor, out: Tensor, weight: Mapping[str, Any]) -> None:
    x = x if x.stride(1) == 1 else x.contiguous()
    n, k, height = weight["n"], weight["k"], weight["HEIGHT"]
    across = max(1, STEP // (height * weight["WIDTH"]))
    step = across * weight["WIDTH"]
    splits, share = shares(n, k, step, block_n=height)
    part = out if splits == 1 else torch.empty(splits, 1, n, dtype=torch.float32, device=x.device)

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(n, meta["DOWN"] * height) * splits,)

    own = {"share": share // step, "ACROSS": across, "RUN": min(8, weight["WIDTH"]), "PTX": _in_ptx(GEMV, x, weight)}
    Launch(GEMV, grid, {"x_ptr": x, "out_ptr": part, **weight, **own}).run()
    if splits > 1:
        add_up(part, out)


def _small(x: Tensor, out: Tensor, weight: Mapping[str, Any], turned: bool) -> None:
    m, outside = out.shape
    block_i = max(32 if x.dtype == torch.float32 else 64, weight["HEIGHT" if turned else "WIDTH"])
    splits, share = shares(outside, x.shape[1], 4 * block_i, block_n=64)
    part = out if splits == 1 else torch.empty(splits, m, outside, dtype=torch.float32, device=x.device)
    block_m = row_block(m)

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(m, block_m) * triton.cdiv(outside, meta["BLOCK_O"]) * splits,)

    batch = {"x_ptr": x, "out_ptr": part, "m": m, "x_row": x.stride(0), "x_col": x.stride(1)}
    own = {"BLOCK_M": block_m, "BLOCK_I": block_i, "TURNED": turned, "UPCAST": SMALL.interpreted}
    own |= {"share": share // block_i, "PTX": _in_ptx(SMALL, x, weight)}
    Launch(SMALL, grid, {**batch, **weight, **own}).run()
    if splits > 1:
        add_up(part, out)


def _in_ptx(kernel: Kernel, x: Tensor, weight: Mapping[str, Any]) -> bool:
    return kernel.in_ptx(x.dtype) and weight["BITS"] == 4 and not weight["ROWS"]


# x [k]; mask and starts [blocks_down, mask_bytes], values [kept, value_row] floating, or codes with levels, scale and
# zero -> out [splits, n]
@triton.jit
def _blocks_gemv(
    x_ptr,
    out_ptr,
    mask_ptr,
    starts_ptr,
    values_ptr,
    levels_ptr,
    scale_ptr,
    nest_levels_ptr,
    nest_scale_ptr,
    nest_offset_ptr,
    zero_ptr,
    n,
    k,
    kept,
    blocks_down,
    mask_bytes,
    value_row,
    side_row,
    n_levels,
    share,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    NEST: tl.constexpr,
    PIECE: tl.constexpr,
    CENTRE: tl.constexpr,
    PTX: tl.constexpr,
    RUN: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    size: tl.constexpr = HEIGHT * WIDTH
    tiles = (blocks_down + DOWN - 1) // DOWN
    first = tl.program_id(0) % tiles * DOWN
    split = tl.program_id(0) // tiles
    t = tl.arange(0, DOWN * ACROSS)
    column = tl.arange(0, size)[None, :] % WIDTH
    acc = tl.full((DOWN * ACROSS, size // RUN), 0.0, tl.float32)
    steps = (k + ACROSS * WIDTH - 1) // (ACROSS * WIDTH)
    for step in range(split * share, tl.minimum(steps, split * share + share)):
        across = step * ACROSS + t % ACROSS
        place = places_of(mask_ptr, starts_ptr, first + t // ACROSS, across, kept, blocks_down, mask_bytes)
        w = weights_of_blocks(
            values_ptr, levels_ptr, scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, zero_ptr,
            place, kept, value_row, side_row, n_levels,
            BITS, GROUP, ROWS, NEST, PIECE, CENTRE, PTX, x_ptr.dtype.element_ty, DOWN * ACROSS, size,
        )  # fmt: skip
        col = across[:, None] * WIDTH + column
        x = tl.load(x_ptr + col, mask=(place[:, None] < kept) & (col < k), other=0.0).to(tl.float32)
        acc += tl.sum(tl.reshape(w * x, (DOWN * ACROSS, size // RUN, RUN)), axis=2)
    y = tl.sum(tl.sum(tl.reshape(acc, (DOWN, ACROSS, HEIGHT, WIDTH // RUN)), axis=3), axis=1)
    row = first * HEIGHT + tl.arange(0, DOWN * HEIGHT)
    y = tl.reshape(y, (DOWN * HEIGHT,)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + split.to(tl.int64) * n + row, y, mask=row < n)


# x [m, k] by strides, TURNED: [m, n]; the weight as before -> out [splits, m, n], TURNED: [splits, m, k]
@triton.jit
def _blocks_small(
    x_ptr,
    out_ptr,
    mask_ptr,
    starts_ptr,
    values_ptr,
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
    kept,
    blocks_down,
    mask_bytes,
    value_row,
    side_row,
    n_levels,
    share,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    NEST: tl.constexpr,
    PIECE: tl.constexpr,
    CENTRE: tl.constexpr,
    PTX: tl.constexpr,
    TURNED: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    inside = n if TURNED else k
    outside = k if TURNED else n
    ahead = (m + BLOCK_M - 1) // BLOCK_M
    tiles = (outside + BLOCK_O - 1) // BLOCK_O
    out_row = tl.program_id(0) % ahead * BLOCK_M + tl.arange(0, BLOCK_M)
    tile = tl.program_id(0) // ahead % tiles
    split = tl.program_id(0) // (ahead * tiles)
    out_col = tile * BLOCK_O + tl.arange(0, BLOCK_O)
    compute = tl.float32 if UPCAST else x_ptr.dtype.element_ty
    high: tl.constexpr = (BLOCK_I if TURNED else BLOCK_O) // HEIGHT
    wide: tl.constexpr = (BLOCK_O if TURNED else BLOCK_I) // WIDTH
    t = tl.arange(0, high * wide)
    acc = tl.full((BLOCK_O, BLOCK_M), 0.0, tl.float32)
    steps = (inside + BLOCK_I - 1) // BLOCK_I
    for step in range(split * share, tl.minimum(steps, split * share + share)):
        i = step * BLOCK_I + tl.arange(0, BLOCK_I)
        x_at = x_ptr + out_row.to(tl.int64)[None, :] * x_row + i.to(tl.int64)[:, None] * x_col
        x = tl.load(x_at, mask=(out_row[None, :] < m) & (i[:, None] < inside), other=0.0).to(compute)
        down = (step if TURNED else tile) * high + t // wide
        across = (tile if TURNED else step) * wide + t % wide
        place = places_of(mask_ptr, starts_ptr, down, across, kept, blocks_down, mask_bytes)
        w = weights_of_blocks(
            values_ptr, levels_ptr, scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, zero_ptr,
            place, kept, value_row, side_row, n_levels,
            BITS, GROUP, ROWS, NEST, PIECE, CENTRE, PTX, x_ptr.dtype.element_ty, high * wide, HEIGHT * WIDTH,
        ).to(compute)  # fmt: skip
        if TURNED:
            w = columns_of_blocks(w, high, wide, HEIGHT, WIDTH)
        else:
            w = rows_of_blocks(w, high, wide, HEIGHT, WIDTH)
        acc = tl.dot(w, x, acc, input_precision="ieee")
    at = (split.to(tl.int64) * m + out_row.to(tl.int64)[None, :]) * outside + out_col[:, None]
    kept_out = (out_row[None, :] < m) & (out_col[:, None] < outside)
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=kept_out)


KEY = ("n", "k", "HEIGHT", "WIDTH", "BITS", "GROUP", "ROWS", "NEST")
GEMV = Kernel(
    _blocks_gemv,
    configs=tuple(triton.Config({"DOWN": d}, num_warps=w, num_stages=1) for d, w in ((1, 4), (1, 8), (2, 8))),
    slow=triton.Config({"DOWN": 4}),
    key=KEY,
)
SMALL = Kernel(
    _blocks_small,
    configs=tuple(triton.Config({"BLOCK_O": o}, num_warps=w, num_stages=3) for o, w in ((64, 4), (128, 8), (128, 4))),
    slow=triton.Config({"BLOCK_O": 128}),
    key=(*KEY, "TURNED", "BLOCK_M"),
)
