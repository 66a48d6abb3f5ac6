"""A sparse weight spread out with its zeros, one launch: half of each four or eight weights kept, or those of a mask.

The values are decoded in float32, each operation rounded by itself (nothing is contracted), and rounded once to the
dtype of the output: in float32 the result equals the definition bit by bit. A program writes a tile of the output; of a
mask a tile begins at one of the columns whose rank is known. It serves products of many rows, where the vendor's
library multiplies with the temporary copy, and gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.decoding import table_of
from kernels.sparse_kept import cells_of, dense_of_cells, piece_scales
from kernels.sparse_masked import masked_weights
from kernels.sparse_starts import SEGMENT
from kernels.tuning import Kernel, Launch

__all__ = ["sparse_dequantize"]

STEP = tl.constexpr(SEGMENT)


def sparse_dequantize(out: Tensor, weight: Mapping[str, Any]) -> None:
    """Write the weight, as the products of `kernels.sparse_coded` are given it, to `out` [n, k], contiguous."""
    n, k = out.shape
    kernel, block_k = (CELLS, 128) if weight["OF"] else (MASKED, SEGMENT)
    centre = 0 if weight["zero_ptr"] is not None else weight["CENTRE"]

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(n, meta["BLOCK_N"]) * triton.cdiv(k, block_k),)

    Launch(kernel, grid, {"out_ptr": out, **weight, "CENTRE": centre, "BLOCK_K": block_k}).run()


# places [n, index_bytes] and values by rows, or mask [n, index_bytes], starts [n, segments] and values in one row;
# values floating, or codes with levels, scale and zero -> out [n, k]
@triton.jit
def _sparse_dequantize(
    out_ptr,
    indices_ptr,
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
    index_bytes,
    value_row,
    side_row,
    n_levels,
    segments,
    OF: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    NEST: tl.constexpr,
    PIECE: tl.constexpr,
    CENTRE: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    across = (k + BLOCK_K - 1) // BLOCK_K
    row = tl.program_id(0) // across * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.program_id(0) % across * BLOCK_K
    if OF > 0:
        first = start // 2
        half: tl.constexpr = BLOCK_K // 2
        place, w = cells_of(
            indices_ptr, values_ptr, levels_ptr, zero_ptr, row, first, n, kept, index_bytes, value_row, side_row,
            n_levels, OF, BITS, GROUP, ROWS, PIECE, CENTRE, WORDS, BLOCK_N, half,
        )  # fmt: skip
        if scale_ptr is not None:
            s = piece_scales(
                scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, row, first, n, kept, side_row,
                GROUP, NEST, PIECE, half,
            )  # fmt: skip
            w = tl.reshape(tl.reshape(w, (BLOCK_N, half // PIECE, PIECE)) * s[:, :, None], (BLOCK_N, half))
        w = dense_of_cells(place, w.to(out_ptr.dtype.element_ty), OF, BLOCK_N, half)
    else:
        table = table_of(levels_ptr, n_levels, BITS, tl.float32)
        before = tl.load(starts_ptr + row.to(tl.int64) * segments + start // STEP, mask=row < n, other=0)
        w, _ = masked_weights(
            indices_ptr, values_ptr, levels_ptr, scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr,
            zero_ptr, table, before, row, start, n, kept, index_bytes, value_row,
            BITS, GROUP, NEST, CENTRE, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        w = w.to(out_ptr.dtype.element_ty)
    col = start + tl.arange(0, BLOCK_K)[None, :]
    at = row.to(tl.int64)[:, None] * k + col
    tl.store(out_ptr + at, w, mask=(row[:, None] < n) & (col < k))


def _kernel(*sizes: int) -> Kernel:
    own = {"enable_fp_fusion": False}
    return Kernel(
        _sparse_dequantize,
        configs=tuple(triton.Config({"BLOCK_N": n, **own}, num_warps=4) for n in sizes),
        slow=triton.Config({"BLOCK_N": 128}),
        key=("n", "k", "OF", "BITS", "GROUP", "ROWS", "NEST"),
    )


CELLS = _kernel(32, 64, 16)
MASKED = _kernel(8, 4, 16)
