"""y = x @ w.T with a sparse weight: one row of x without the matrix unit, more rows on it.

    one row      y[j] = sum of values[j, i] * x[column of values[j, i]]     over the kept weights of row j
    more rows    acc += w @ x.T     tile by tile, w spread out in registers with its zeros

For one row a program of 2:4 weights never sees the zeros: it picks, for each kept weight, the x that belongs to it.
The columns are shared out among `splits` programs whose partial results are added up in their order. Splits and
BLOCK_K follow from the weight and the dtype alone: row i of y is the same, bit by bit, for any number of rows from two
on, and inside `kernels.launchers.rows_alike` from one. The kernels serve both formats, KIND "two_of_four", "bitmask".
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
from kernels.launchers import alone
from kernels.partials import add_up
from kernels.small import row_block
from kernels.sparse_starts import SEGMENT
from kernels.sparse_tile import dense_of_pairs, masked_of, pairs_of, scales_of
from kernels.tuning import Kernel, Launch

__all__ = ["sparse_multiply"]

STEP = tl.constexpr(SEGMENT)


def sparse_multiply(x: Tensor, weight: Mapping[str, Any]) -> Tensor:
    """x [..., k] @ w.T -> [..., n] in the dtype of `x`; nothing is launched for an empty batch."""
    flat = x.reshape(-1, weight["k"])
    m, n = flat.shape[0], weight["n"]
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if m:
        (_gemv if alone(m) else _small)(flat, out, weight)
    return out.view(*x.shape[:-1], n)


def _gemv(x: Tensor, out: Tensor, weight: Mapping[str, Any]) -> None:
    x = x if x.stride(1) == 1 else x.contiguous()  # offsets in x are then 32 bits wide
    _launch(GEMV, x, out, weight, {"BLOCK_K": SEGMENT}, shares(out.shape[1], weight["k"], SEGMENT), 1)


def _small(x: Tensor, out: Tensor, weight: Mapping[str, Any]) -> None:
    kernel = SMALL if weight["KIND"] == "two_of_four" else SMALL_MASKED
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


# x [k]; indices [n, index_bytes] and values by rows, or mask [n, index_bytes], starts [n, segments] and values in one
# row; values floating, or codes and scale -> out [splits, n]
@triton.jit
def _sparse_gemv(
    x_ptr,
    out_ptr,
    indices_ptr,
    starts_ptr,
    values_ptr,
    scale_ptr,
    n,
    k,
    kept,
    index_bytes,
    value_row,
    side_row,
    segments,
    share,
    KIND: tl.constexpr,
    CODES: tl.constexpr,
    GROUP: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    down = (n + BLOCK_N - 1) // BLOCK_N
    row = tl.program_id(0) % down * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(0) // down
    width: tl.constexpr = BLOCK_K // 2 if KIND == "two_of_four" else BLOCK_K
    acc = tl.full((BLOCK_N, width // PIECE), 0.0, tl.float32)
    for start in range(split * share, tl.minimum(k, split * share + share), BLOCK_K):
        if KIND == "two_of_four":
            first = start // 2
            place, w = pairs_of(
                indices_ptr, values_ptr, row, first, n, kept, index_bytes, value_row, CODES, BLOCK_N, width
            )
            col = (start + tl.arange(0, width) // 2 * 4)[None, :] + place
        else:
            col = start + tl.arange(0, width)[None, :]
            at = row.to(tl.int64) * segments + start // STEP
            before = tl.load(starts_ptr + at, mask=row < n, other=0).to(tl.int64)
            w, before = masked_of(indices_ptr, values_ptr, before, row, start, n, kept, index_bytes, BLOCK_N, width)
        total = w * tl.load(x_ptr + col, mask=col < k, other=0.0).to(tl.float32)
        if PIECE > 1:
            total = tl.sum(tl.reshape(total, (BLOCK_N, width // PIECE, PIECE)), axis=2)
        if CODES > 0:
            total *= scales_of(scale_ptr, row, start // 2, n, kept, side_row, GROUP, PIECE, width)
        acc += total
    y = tl.sum(acc, axis=1)
    tl.store(out_ptr + split.to(tl.int64) * n + row, y.to(out_ptr.dtype.element_ty), mask=row < n)


# x [m, k] by strides, the weight as before -> out [splits, m, n]
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
    KIND: tl.constexpr,
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
        if KIND == "two_of_four":
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


def _small_kernel(sizes: tuple[tuple[int, int], ...]) -> Kernel:
    configs = tuple(triton.Config({"BLOCK_N": n}, num_warps=warps, num_stages=3) for n, warps in sizes)
    return Kernel(_sparse_small, configs, slow=triton.Config({"BLOCK_N": 256}), key=(*KEY, "BLOCK_M"))


KEY = ("n", "k", "KIND", "CODES", "GROUP")
GEMV = Kernel(
    _sparse_gemv,
    configs=tuple(triton.Config({"BLOCK_N": n}, num_warps=w, num_stages=1) for n, w in ((8, 4), (4, 4), (16, 8))),
    slow=triton.Config({"BLOCK_N": 128}),
    key=KEY,
)
SMALL = _small_kernel(((64, 8), (64, 4), (128, 8)))
SMALL_MASKED = _small_kernel(((64, 8), (32, 4)))  # a thread that counts bits has room for fewer weights
