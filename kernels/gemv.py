"""y = x @ w.T for one to four rows of x, without the matrix unit: one pass over the packed weight.

A program owns BLOCK_N rows of the weight and one of `splits` runs of its columns. A lane reads 16 bytes of codes at a
time and holds its x in registers, so that a weight is decoded once for all rows of x. PIECE consecutive weights are
summed within a lane and then multiplied by their scale; the sums of the lanes are added after the last column.
On a zero point z the product is x @ (u - z).T = x @ u.T - z * sum(x), piece by piece.
Splits and BLOCK_K follow from the weight alone, so row i of y is the same, bit by bit, for one to four rows.
Memory-bound product: Williams et al. 2009 (roofline), Comm. ACM 52(4); split sums: arXiv 2402.00025.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.decoding import planes_of, scales_at, table_of, units_of
from kernels.partials import add_up
from kernels.tuning import Kernel, Launch

__all__ = ["GEMV_ROWS", "gemv", "piece", "shares"]

GEMV_ROWS = 4
PROGRAMS = 512  # wanted at least: about four for each multiprocessor of a large GPU
MOST = 64  # runs of columns: their sums are added one after the other


def gemv(x: Tensor, out: Tensor, weight: Mapping[str, Any]) -> None:
    """Write x [m, k] @ w.T to `out` [m, n], for m of 1 to `GEMV_ROWS`."""
    (m, n), k = out.shape, weight["k"]
    block_k = 1024
    splits, share = shares(n, k, block_k)
    part = out if splits == 1 else torch.empty(splits, m, n, dtype=torch.float32, device=x.device)

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(n, meta["BLOCK_N"]) * splits,)

    batch = {"x_ptr": x, "out_ptr": part, "m": m, "x_row": x.stride(0), "x_col": x.stride(1)}
    fixed = {
        "share": share // block_k,
        "M_ROWS": m if m < 3 else 4,
        "PIECE": piece(weight["GROUP"]),
        "BLOCK_K": block_k,
        "PTX": GEMV.in_ptx(x.dtype) and weight["BITS"] == 4 and not weight["ROWS"],
    }
    Launch(GEMV, grid, {**batch, **weight, **fixed}).run()
    if splits > 1:
        add_up(part, out)


def piece(group: int) -> int:
    """Consecutive weights that a lane sums before their scale: a power of two that divides the group, 32 at most."""
    return min(32, group & -group) if group else 32


def shares(n: int, k: int, block_k: int, block_n: int = 8) -> tuple[int, int]:
    """How many runs the columns are cut into, and the columns of a run: a multiple of `block_k`.

    Enough runs that `PROGRAMS` programs of `block_n` rows have work, each of one block at least.
    """
    blocks = -(-k // block_k)
    wanted = min(MOST, max(1, PROGRAMS // -(-n // block_n)))
    each = -(-blocks // min(wanted, blocks))
    return -(-blocks // each), each * block_k


@triton.jit
def _sums(x_ptr, i, m, k, x_row, x_col, col, w, z, s, ZERO: tl.constexpr, SCALE: tl.constexpr, PIECE: tl.constexpr):
    # row i of x times w [BLOCK_N, BLOCK_K] float32, summed in pieces of one scale [BLOCK_N, BLOCK_K / PIECE]
    x_at = x_ptr + tl.full((), i, tl.int64) * x_row + col.to(tl.int64) * x_col
    inside = (col < k) & (tl.full(col.shape, i, tl.int32) < m)
    x = tl.load(x_at, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(tl.reshape(w * x[None, :], (w.shape[0], w.shape[1] // PIECE, PIECE)), axis=2)
    if ZERO:
        total -= z * tl.sum(tl.reshape(x, (w.shape[1] // PIECE, PIECE)), axis=1)[None, :]
    if SCALE:
        total *= s
    return total


@triton.jit
def _store(out_ptr, total, i, m, n, row):
    inside = (row < n) & (tl.full(row.shape, i, tl.int32) < m)
    tl.store(out_ptr + tl.full((), i, tl.int64) * n + row, total.to(out_ptr.dtype.element_ty), mask=inside)


# x [m, k] by strides, codes [n, row_bytes] uint8, scale and zero [n or 1, groups] -> out [m, n] or [splits, m, n]
@triton.jit
def _gemv(
    x_ptr,
    out_ptr,
    codes_ptr,
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
    row_bytes,
    side_row,
    n_levels,
    share,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    NEST: tl.constexpr,
    M_ROWS: tl.constexpr,
    PIECE: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    down = (n + BLOCK_N - 1) // BLOCK_N
    row = tl.program_id(0) % down * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(0) // down
    half: tl.constexpr = x_ptr.dtype.element_ty
    centre: tl.constexpr = 1 << (BITS - 1)
    zero: tl.constexpr = zero_ptr is not None
    scaled: tl.constexpr = scale_ptr is not None and GROUP != 0
    table = table_of(levels_ptr, n_levels, BITS, half)
    planes = planes_of(levels_ptr, n_levels, half, PTX)
    side = row.to(tl.int64)[:, None] * side_row
    acc0 = tl.full((BLOCK_N, BLOCK_K // PIECE), 0.0, tl.float32)
    acc1, acc2, acc3 = acc0, acc0, acc0
    blocks = (k + BLOCK_K - 1) // BLOCK_K
    for block in range(split * share, tl.minimum(blocks, split * share + share)):
        start = block * BLOCK_K  # so the compiler sees that it is aligned
        col = start + tl.arange(0, BLOCK_K)
        w = units_of(
            codes_ptr,
            levels_ptr,
            table,
            planes,
            row,
            start,
            n,
            row_bytes,
            n_levels,
            BITS,
            ROWS,
            PTX,
            centre,
            half,
            BLOCK_N,
            BLOCK_K,
        ).to(tl.float32)
        head = start + PIECE * tl.arange(0, BLOCK_K // PIECE)[None, :]
        at = side
        if GROUP != 0:
            at = side + head // GROUP
        inside = (row[:, None] < n) & (head < k)
        z, s = 0.0, 1.0
        if zero:
            z = tl.load(zero_ptr + at, mask=inside, other=0.0).to(tl.float32) - centre
        if scaled:
            s = scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, at, inside, NEST)
        acc0 += _sums(x_ptr, 0, m, k, x_row, x_col, col, w, z, s, zero, scaled, PIECE)
        if M_ROWS > 1:
            acc1 += _sums(x_ptr, 1, m, k, x_row, x_col, col, w, z, s, zero, scaled, PIECE)
        if M_ROWS > 2:
            acc2 += _sums(x_ptr, 2, m, k, x_row, x_col, col, w, z, s, zero, scaled, PIECE)
            acc3 += _sums(x_ptr, 3, m, k, x_row, x_col, col, w, z, s, zero, scaled, PIECE)
    s = tl.full((BLOCK_N,), 1.0, tl.float32)
    if scale_ptr is not None and GROUP == 0:
        at = row.to(tl.int64) * side_row
        s = scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, at, row < n, NEST)
    out = out_ptr + split.to(tl.int64) * m * n
    _store(out, tl.sum(acc0, axis=1) * s, 0, m, n, row)
    if M_ROWS > 1:
        _store(out, tl.sum(acc1, axis=1) * s, 1, m, n, row)
    if M_ROWS > 2:
        _store(out, tl.sum(acc2, axis=1) * s, 2, m, n, row)
        _store(out, tl.sum(acc3, axis=1) * s, 3, m, n, row)


GEMV = Kernel(
    _gemv,
    configs=tuple(
        triton.Config({"BLOCK_N": n}, num_warps=warps, num_stages=1) for n, warps in ((8, 4), (4, 4), (16, 8), (8, 8))
    ),
    slow=triton.Config({"BLOCK_N": 128}),
    key=("n", "k", "BITS", "GROUP", "ROWS", "NEST"),
)
