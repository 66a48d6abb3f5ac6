"""A block-sparse weight spread out with its zeros, one launch.

The values are decoded in float32, each operation rounded by itself (nothing is contracted), and rounded once to the
dtype of the output: in float32 the result equals the definition bit by bit. It is bound by the bytes that are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.blocks_tile import places_of, rows_of_blocks, weights_of_blocks
from kernels.tuning import Kernel, Launch

__all__ = ["blocks_decode"]


def blocks_decode(out: Tensor, weight: Mapping[str, Any]) -> None:
    """Write the weight, as the products of `kernels.blocks_products` are given it, to `out` [n, k], contiguous."""
    n, k = out.shape
    high, wide = max(64, weight["HEIGHT"]), max(64, weight["WIDTH"])
    grid = (triton.cdiv(n, high) * triton.cdiv(k, wide),)
    own = {"DOWN": high // weight["HEIGHT"], "ACROSS": wide // weight["WIDTH"]}
    centre = 0 if weight["zero_ptr"] is not None else weight["CENTRE"]
    Launch(DECODE, lambda meta: grid, {"out_ptr": out, **weight, "CENTRE": centre, **own}).run()


# mask and starts [blocks_down, mask_bytes], values [kept, value_row] floating, or codes with levels, scale and zero
# -> out [n, k]
@triton.jit
def _blocks_dequantize(
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
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    NEST: tl.constexpr,
    PIECE: tl.constexpr,
    CENTRE: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    tiles = (k + ACROSS * WIDTH - 1) // (ACROSS * WIDTH)
    first = tl.program_id(0) // tiles * DOWN
    start = tl.program_id(0) % tiles * ACROSS
    t = tl.arange(0, DOWN * ACROSS)
    place = places_of(mask_ptr, starts_ptr, first + t // ACROSS, start + t % ACROSS, kept, blocks_down, mask_bytes)
    w = weights_of_blocks(
        values_ptr, levels_ptr, scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, zero_ptr,
        place, kept, value_row, side_row, n_levels,
        BITS, GROUP, ROWS, NEST, PIECE, CENTRE, False, tl.float32, DOWN * ACROSS, HEIGHT * WIDTH,
    )  # fmt: skip
    w = rows_of_blocks(w.to(out_ptr.dtype.element_ty), DOWN, ACROSS, HEIGHT, WIDTH)
    row = first * HEIGHT + tl.arange(0, DOWN * HEIGHT)
    col = start * WIDTH + tl.arange(0, ACROSS * WIDTH)
    at = row.to(tl.int64)[:, None] * k + col[None, :]
    tl.store(out_ptr + at, w, mask=(row[:, None] < n) & (col[None, :] < k))


DECODE = Kernel(
    _blocks_dequantize,
    configs=tuple(triton.Config({"enable_fp_fusion": False}, num_warps=warps) for warps in (4, 8)),
    slow=triton.Config({}),
    key=("n", "k", "HEIGHT", "WIDTH", "BITS", "GROUP", "ROWS", "NEST"),
)
