"""y = x @ w.T with a sparse weight whose kept weights are floating or codes: half of each four or eight, or by a mask.

    one row      y[j] = sum of u[j, i] * scale[j, i] * x[column of u[j, i]]     over the kept weights of row j
    more rows    acc += w @ x.T     tile by tile, w spread out in registers with its zeros

These are the two ways of `kernels.sparse_products`, here for every width of codes, tables of levels, zeros, and nested
scales. Splits and BLOCK_K follow from the weight and the dtype alone, and partial results are added up in their order.
Sources: Mishra et al. 2021, arXiv 2104.08378 (2:4); Sun et al. 2021 (DominoSearch), NeurIPS (n:m); split sums: Hoque et
al. 2024, arXiv 2402.00025.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.decoding import table_of
from kernels.gemv import shares
from kernels.launchers import alone
from kernels.partials import add_up
from kernels.small import row_block
from kernels.sparse_kept import cells_of, dense_of_cells, piece_scales
from kernels.sparse_masked import masked_weights
from kernels.sparse_starts import SEGMENT
from kernels.tuning import Kernel, Launch

__all__ = ["coded_multiply"]

STEP = tl.constexpr(SEGMENT)


def coded_multiply(x: Tensor, weight: Mapping[str, Any]) -> Tensor:
    """x [..., k] @ w.T -> [..., n] in the dtype of `x`; nothing is launched for an empty batch."""
    flat = x.reshape(-1, weight["k"])
    m, n = flat.shape[0], weight["n"]
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if m:
        (_gemv if alone(m) else _small)(flat, out, weight)
    return out.view(*x.shape[:-1], n)


def _gemv(x: Tensor, out: Tensor, weight: Mapping[str, Any]) -> None:
    x = x if x.stride(1) == 1 else x.contiguous()
    kernel = GEMV if weight["OF"] else GEMV_MASKED
    _launch(kernel, x, out, weight, {"BLOCK_K": SEGMENT}, shares(out.shape[1], weight["k"], SEGMENT), 1)


def _small(x: Tensor, out: Tensor, weight: Mapping[str, Any]) -> None:
    kernel = SMALL if weight["OF"] else SMALL_MASKED
    block_m = row_block(len(x))
    batch = {"m": len(x), "x_row": x.stride(0), "x_col": x.stride(1), "UPCAST": kernel.interpreted}
    blocks = {"BLOCK_M": block_m, "BLOCK_K": 32 if x.dtype == torch.float32 else 64}
    shared = shares(out.shape[1], weight["k"], SEGMENT, block_n=64)
    _launch(kernel, x, out, weight, {**batch, **blocks}, shared, triton.cdiv(len(x), block_m))


def _launch(
    kernel: Kernel,
    x: Tensor,
    out: Tensor,
    weight: Mapping[str, Any],
    own: Mapping[str, Any],
    shared: tuple[int, int],
    tiles: int,
) -> None:
    (m, n), (splits, share) = out.shape, shared
    part = out if splits == 1 else torch.empty(splits, m, n, dtype=torch.float32, device=x.device)

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (tiles * triton.cdiv(n, meta["BLOCK_N"]) * splits,)

    Launch(kernel, grid, {"x_ptr": x, "out_ptr": part, **weight, "share": share, **own}).run()
    if splits > 1:
        add_up(part, out)


# x [k]; places [n, index_bytes] and values by rows, or mask [n, index_bytes], starts [n, segments] and values in one
# row; values floating, or codes with levels, scale and zero -> out [splits, n]
@triton.jit
def _kept_gemv(
    x_ptr,
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
    share,
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
    down = (n + BLOCK_N - 1) // BLOCK_N
    row = tl.program_id(0) % down * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(0) // down
    width: tl.constexpr = BLOCK_K // 2 if OF > 0 else BLOCK_K
    table = table_of(levels_ptr, n_levels, BITS, tl.float32)
    acc = tl.full((BLOCK_N, width), 0.0, tl.float32)
    for start in range(split * share, tl.minimum(k, split * share + share), BLOCK_K):
        if OF > 0:
            first = start // 2
            place, w = cells_of(
                indices_ptr, values_ptr, levels_ptr, zero_ptr, row, first, n, kept, index_bytes, value_row, side_row,
                n_levels, OF, BITS, GROUP, ROWS, PIECE, CENTRE, WORDS, BLOCK_N, width,
            )  # fmt: skip
            if scale_ptr is not None:
                s = piece_scales(
                    scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, row, first, n, kept, side_row,
                    GROUP, NEST, PIECE, width,
                )  # fmt: skip
                w = tl.reshape(tl.reshape(w, (BLOCK_N, width // PIECE, PIECE)) * s[:, :, None], (BLOCK_N, width))
            col = (start + tl.arange(0, width) // (OF // 2) * OF)[None, :] + place
        else:
            col = start + tl.arange(0, width)[None, :]
            before = tl.load(starts_ptr + row.to(tl.int64) * segments + start // STEP, mask=row < n, other=0)
            w, _ = masked_weights(
                indices_ptr, values_ptr, levels_ptr, scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr,
                zero_ptr, table, before, row, start, n, kept, index_bytes, value_row,
                BITS, GROUP, NEST, CENTRE, BLOCK_N, width,
            )  # fmt: skip
        acc += w * tl.load(x_ptr + col, mask=col < k, other=0.0).to(tl.float32)
    y = tl.sum(acc, axis=1)
    tl.store(out_ptr + split.to(tl.int64) * n + row, y.to(out_ptr.dtype.element_ty), mask=row < n)


# x [m, k] by strides, the weight as before -> out [splits, m, n]
@triton.jit
def _kept_small(
    x_ptr,
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
    m,
    n,
    k,
    x_row,
    x_col,
    kept,
    index_bytes,
    value_row,
    side_row,
    n_levels,
    segments,
    share,
    OF: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    NEST: tl.constexpr,
    PIECE: tl.constexpr,
    CENTRE: tl.constexpr,
    WORDS: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    across = (m + BLOCK_M - 1) // BLOCK_M
    down = (n + BLOCK_N - 1) // BLOCK_N
    out_row = tl.program_id(0) % across * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(0) // across % down * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(0) // (across * down)
    compute = tl.float32 if UPCAST else x_ptr.dtype.element_ty
    half: tl.constexpr = BLOCK_K // 2
    table = table_of(levels_ptr, n_levels, BITS, tl.float32)
    if OF == 0:
        at = row.to(tl.int64) * segments + split * share // STEP
        before = tl.load(starts_ptr + at, mask=row < n, other=0)
    acc = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
    for start in range(split * share, tl.minimum(k, split * share + share), BLOCK_K):
        col = start + tl.arange(0, BLOCK_K)
        x_at = x_ptr + out_row.to(tl.int64)[None, :] * x_row + col.to(tl.int64)[:, None] * x_col
        x = tl.load(x_at, mask=(out_row[None, :] < m) & (col[:, None] < k), other=0.0).to(compute)
        if OF > 0:
            first = start // 2
            place, u = cells_of(
                indices_ptr, values_ptr, levels_ptr, zero_ptr, row, first, n, kept, index_bytes, value_row, side_row,
                n_levels, OF, BITS, GROUP, ROWS, PIECE, CENTRE, WORDS, BLOCK_N, half,
            )  # fmt: skip
            if scale_ptr is not None:
                s = piece_scales(
                    scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, row, first, n, kept, side_row,
                    GROUP, NEST, PIECE, half,
                )  # fmt: skip
                u = tl.reshape(tl.reshape(u, (BLOCK_N, half // PIECE, PIECE)) * s[:, :, None], (BLOCK_N, half))
            w = dense_of_cells(place, u.to(compute), OF, BLOCK_N, half)
        else:
            u, count = masked_weights(
                indices_ptr, values_ptr, levels_ptr, scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr,
                zero_ptr, table, before, row, start, n, kept, index_bytes, value_row,
                BITS, GROUP, NEST, CENTRE, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            before += count
            w = u.to(compute)
        acc = tl.dot(w, x, acc, input_precision="ieee")
    at = (split.to(tl.int64) * m + out_row.to(tl.int64)[None, :]) * n + row[:, None]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=(out_row[None, :] < m) & (row[:, None] < n))


KEY = ("n", "k", "OF", "BITS", "GROUP", "ROWS", "NEST")


def _kernel(fn: Any, slow: int, stages: int, key: tuple[str, ...], *sizes: tuple[int, int]) -> Kernel:
    configs = tuple(triton.Config({"BLOCK_N": n}, num_warps=warps, num_stages=stages) for n, warps in sizes)
    return Kernel(fn, configs, slow=triton.Config({"BLOCK_N": slow}), key=key)


GEMV = _kernel(_kept_gemv, 128, 1, KEY, (8, 4), (4, 4), (16, 8))
GEMV_MASKED = _kernel(_kept_gemv, 128, 1, KEY, (4, 4), (8, 8))
SMALL = _kernel(_kept_small, 256, 3, (*KEY, "BLOCK_M"), (64, 8), (64, 4), (128, 8))
SMALL_MASKED = _kernel(_kept_small, 256, 3, (*KEY, "BLOCK_M"), (64, 8), (32, 4))
