"""y = x @ w.T with a sparse weight: up to four rows of x without the matrix unit, more rows on it.

    few rows    acc[j] += values[j, i] * x[column of values[j, i]]     over the kept weights of row j
    more rows   acc += w @ x.T     tile by tile, w spread out in registers with its zeros

For few rows a program of 2:4 weights never sees the zeros: it picks, for each kept weight, the x that belongs to it.
The columns are shared out among `splits` programs whose partial results are added up in their order. Splits and
BLOCK_K follow from the weight and the dtype alone: row i of y is the same, bit by bit, for any number of rows on one
side of the border. One kernel serves both formats: 2:4 where there are no `starts`, a bit mask where there are.
Sources: Mishra et al. 2021, arXiv 2104.08378 (2:4); split sums: Hoque et al. 2024, arXiv 2402.00025.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gemv import shares
from kernels.partials import add_up
from kernels.small import row_block
from kernels.sparse_starts import SEGMENT
from kernels.sparse_tile import dense_of_pairs, masked_of, pairs_of, scales_of
from kernels.tuning import Kernel, Launch

__all__ = ["sparse_multiply"]

GEMV_ROWS = 4  # more are multiplied on the matrix unit
STEP = tl.constexpr(SEGMENT)


def sparse_multiply(x: Tensor, weight: Mapping[str, Any]) -> Tensor:
    """x [..., k] @ w.T -> [..., n] in the dtype of `x`; nothing is launched for an empty batch."""
    flat = x.reshape(-1, weight["k"])
    m, n = flat.shape[0], weight["n"]
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if m:
        (_few if m <= GEMV_ROWS else _more)(flat, out, weight)
    return out.view(*x.shape[:-1], n)


def _few(x: Tensor, out: Tensor, weight: Mapping[str, Any]) -> None:
    m = len(x)
    own = {"M_ROWS": m if m < 3 else 4, "BLOCK_K": SEGMENT}
    x = x if x.stride(1) == 1 else x.contiguous()  # offsets in a row of x are then 32 bits wide
    _launch(GEMV, x, out, weight, own, shares(out.shape[1], weight["k"], SEGMENT), 1)


def _more(x: Tensor, out: Tensor, weight: Mapping[str, Any]) -> None:
    block_m = row_block(len(x))
    own = {
        "BLOCK_M": block_m,
        "BLOCK_K": 32 if x.dtype == torch.float32 else 64,
        "UPCAST": SMALL.interpreted,
        "x_col": x.stride(1),
    }
    tiles = triton.cdiv(len(x), block_m)
    _launch(SMALL, x, out, weight, own, shares(out.shape[1], weight["k"], SEGMENT, block_n=64), tiles)


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

    batch = {"x_ptr": x, "out_ptr": part, "m": m, "x_row": x.stride(0)}
    Launch(kernel, grid, {**batch, **weight, "share": share, **own}).run()
    if splits > 1:
        add_up(part, out)


@triton.jit
def _sums(x_ptr, i, m, k, x_row, col, w, s, SCALED: tl.constexpr, PIECE: tl.constexpr):
    # row i of x at columns [BLOCK_N or 1, W] times w [BLOCK_N, W], summed in pieces [BLOCK_N, W / PIECE]
    x_at = x_ptr + tl.full((), i, tl.int64) * x_row + col
    x = tl.load(x_at, mask=(col < k) & (tl.full(col.shape, i, tl.int32) < m), other=0.0).to(tl.float32)
    total = w * x
    if PIECE > 1:
        total = tl.sum(tl.reshape(total, (w.shape[0], w.shape[1] // PIECE, PIECE)), axis=2)
    if SCALED:
        total *= s
    return total


@triton.jit
def _store(out_ptr, total, i, m, n, row):
    inside = (row < n) & (tl.full(row.shape, i, tl.int32) < m)
    tl.store(out_ptr + tl.full((), i, tl.int64) * n + row, total.to(out_ptr.dtype.element_ty), mask=inside)


# x [m, k] by strides; indices [n, index_bytes] and values by rows, or mask [n, index_bytes], starts [n, segments] and
# values in one row; values floating, or codes and scale -> out [m, n] or [splits, m, n]
@triton.jit
def _sparse_gemv(
    x_ptr,
    out_ptr,
    indices_ptr,
    starts_ptr,
    values_ptr,
    scale_ptr,
    m,
    n,
    k,
    x_row,
    kept,
    index_bytes,
    value_row,
    side_row,
    segments,
    share,
    CODES: tl.constexpr,
    GROUP: tl.constexpr,
    PIECE: tl.constexpr,
    M_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    down = (n + BLOCK_N - 1) // BLOCK_N
    row = tl.program_id(0) % down * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(0) // down
    pairs: tl.constexpr = starts_ptr is None
    scaled: tl.constexpr = pairs and CODES > 0
    width: tl.constexpr = BLOCK_K // 2 if pairs else BLOCK_K
    acc0 = tl.full((BLOCK_N, width // PIECE), 0.0, tl.float32)
    acc1, acc2, acc3 = acc0, acc0, acc0
    for start in range(split * share, tl.minimum(k, split * share + share), BLOCK_K):
        s = 1.0
        if pairs:
            first = start // 2
            place, w = pairs_of(
                indices_ptr, values_ptr, row, first, n, kept, index_bytes, value_row, CODES, BLOCK_N, width
            )
            col = (start + tl.arange(0, width) // 2 * 4)[None, :] + place
            if scaled:
                s = scales_of(scale_ptr, row, first, n, kept, side_row, GROUP, PIECE, width)
        else:
            col = start + tl.arange(0, width)[None, :]
            at = row.to(tl.int64) * segments + start // STEP
            before = tl.load(starts_ptr + at, mask=row < n, other=0).to(tl.int64)
            w, before = masked_of(indices_ptr, values_ptr, before, row, start, n, kept, index_bytes, BLOCK_N, width)
        acc0 += _sums(x_ptr, 0, m, k, x_row, col, w, s, scaled, PIECE)
        if M_ROWS > 1:
            acc1 += _sums(x_ptr, 1, m, k, x_row, col, w, s, scaled, PIECE)
        if M_ROWS > 2:
            acc2 += _sums(x_ptr, 2, m, k, x_row, col, w, s, scaled, PIECE)
            acc3 += _sums(x_ptr, 3, m, k, x_row, col, w, s, scaled, PIECE)
    out = out_ptr + split.to(tl.int64) * m * n
    _store(out, tl.sum(acc0, axis=1), 0, m, n, row)
    if M_ROWS > 1:
        _store(out, tl.sum(acc1, axis=1), 1, m, n, row)
    if M_ROWS > 2:
        _store(out, tl.sum(acc2, axis=1), 2, m, n, row)
        _store(out, tl.sum(acc3, axis=1), 3, m, n, row)


# the same arguments, and x by the stride of its columns too
@triton.jit
def _sparse_small(
    x_ptr,
    out_ptr,
    indices_ptr,
    starts_ptr,
    values_ptr,
    scale_ptr,
    m,
    n,
    k,
    x_row,
    x_col,
    kept,
    index_bytes,
    value_row,
    side_row,
    segments,
    share,
    CODES: tl.constexpr,
    GROUP: tl.constexpr,
    PIECE: tl.constexpr,
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
    before = row.to(tl.int64) * 0
    acc = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
    for start in range(split * share, tl.minimum(k, split * share + share), BLOCK_K):
        col = start + tl.arange(0, BLOCK_K)
        x_at = x_ptr + out_row.to(tl.int64)[None, :] * x_row + col.to(tl.int64)[:, None] * x_col
        x = tl.load(x_at, mask=(out_row[None, :] < m) & (col[:, None] < k), other=0.0).to(compute)
        if starts_ptr is None:
            first = start // 2
            place, u = pairs_of(
                indices_ptr, values_ptr, row, first, n, kept, index_bytes, value_row, CODES, BLOCK_N, half
            )
            if CODES:
                s = scales_of(scale_ptr, row, first, n, kept, side_row, GROUP, PIECE, half)
                u = tl.reshape(tl.reshape(u, (BLOCK_N, half // PIECE, PIECE)) * s[:, :, None], (BLOCK_N, half))
            w = dense_of_pairs(place, u.to(compute), BLOCK_N, half)
        else:
            fresh = (row < n) & (tl.full(row.shape, start, tl.int32) % STEP == 0)
            at = row.to(tl.int64) * segments + start // STEP
            before = tl.where(fresh, tl.load(starts_ptr + at, mask=fresh, other=0).to(tl.int64), before)
            u, before = masked_of(indices_ptr, values_ptr, before, row, start, n, kept, index_bytes, BLOCK_N, BLOCK_K)
            w = u.to(compute)
        acc = tl.dot(w, x, acc, input_precision="ieee")
    at = (split.to(tl.int64) * m + out_row.to(tl.int64)[None, :]) * n + row[:, None]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=(out_row[None, :] < m) & (row[:, None] < n))


KEY = ("n", "k", "CODES", "GROUP")
GEMV = Kernel(
    _sparse_gemv,
    configs=tuple(triton.Config({"BLOCK_N": n}, num_warps=w, num_stages=1) for n, w in ((8, 4), (4, 4), (16, 8))),
    slow=triton.Config({"BLOCK_N": 128}),
    key=KEY,
)
SMALL = Kernel(
    _sparse_small,
    configs=tuple(
        triton.Config({"BLOCK_N": n}, num_warps=w, num_stages=s) for n, w, s in ((64, 8, 3), (64, 4, 3), (128, 8, 3))
    ),
    slow=triton.Config({"BLOCK_N": 256}),
    key=(*KEY, "BLOCK_M"),
)
