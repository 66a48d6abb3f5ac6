"""y = x @ w.T for one row of x, without the matrix unit: one pass over the packed weight.

A program owns BLOCK_N rows of the weight and one of `splits` runs of its columns. A lane reads 16 bytes of codes at a
time; PIECE consecutive weights are summed within a lane and then multiplied by their scale, and the sums of the lanes
are added after the last column. On a zero point z the product is x @ (u - z).T = x @ u.T - z * sum(x), piece by piece.
The columns that were shared out are added up in their order: the same bits in every run.
Memory-bound product: Williams et al. 2009 (roofline), Comm. ACM 52(4); split sums: arXiv 2402.00025.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.decoding import row_planes, scales_at, table_of, units_of
from kernels.partials import add_up
from kernels.tuning import Kernel, Launch

__all__ = ["gemv", "piece", "shares"]

PROGRAMS = 512  # wanted at least: about four for each multiprocessor of a large GPU
MOST = 64  # runs of columns: their sums are added one after the other


def gemv(x: Tensor, out: Tensor, weight: Mapping[str, Any]) -> None:
    """Write x [1, k] @ w.T to `out` [1, n]."""
    n, k = out.shape[1], weight["k"]
    block_k = 1024
    splits, share = shares(n, k, block_k)
    part = out if splits == 1 else torch.empty(splits, 1, n, dtype=torch.float32, device=x.device)

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(n, meta["BLOCK_N"]) * splits,)

    fixed = {
        "share": share // block_k,
        "PIECE": piece(weight["GROUP"]),
        "BLOCK_K": block_k,
        "PTX": GEMV.in_ptx(x.dtype) and weight["BITS"] == 4,
    }
    batch = {"x_ptr": x, "out_ptr": part, "x_col": x.stride(1)}
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


# x [k] by stride, codes [n, row_bytes] uint8, scale and zero [n or 1, groups] -> out [splits, n]
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
    n,
    k,
    x_col,
    row_bytes,
    side_row,
    n_levels,
    share,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    NEST: tl.constexpr,
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
    table = table_of(levels_ptr, n_levels, BITS, half, PAIRS)
    planes = row_planes(levels_ptr, row, n, n_levels, half, ROWS, PTX, PAIRS)
    side = row.to(tl.int64)[:, None] * side_row
    acc = tl.full((BLOCK_N, BLOCK_K // PIECE), 0.0, tl.float32)
    blocks = (k + BLOCK_K - 1) // BLOCK_K
    for block in range(split * share, tl.minimum(blocks, split * share + share)):
        start = block * BLOCK_K  # so the compiler sees that it is aligned
        col = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + col.to(tl.int64) * x_col, mask=col < k, other=0.0).to(tl.float32)
        u = units_of(
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
            PAIRS,
        )
        product = tl.reshape(u.to(tl.float32) * x[None, :], (BLOCK_N, BLOCK_K // PIECE, PIECE))
        total = tl.sum(product, axis=2)
        head = start + PIECE * tl.arange(0, BLOCK_K // PIECE)[None, :]
        at = side
        if GROUP != 0:
            at = side + head // GROUP
        inside = (row[:, None] < n) & (head < k)
        if zero_ptr is not None:
            z = tl.load(zero_ptr + at, mask=inside, other=0.0).to(tl.float32) - centre
            total -= z * tl.sum(tl.reshape(x, (BLOCK_K // PIECE, PIECE)), axis=1)[None, :]
        if scale_ptr is not None and GROUP != 0:
            total *= scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, at, inside, NEST)
        acc += total
    y = tl.sum(acc, axis=1)
    if scale_ptr is not None and GROUP == 0:
        at = row.to(tl.int64) * side_row
        y *= scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, at, row < n, NEST)
    tl.store(out_ptr + split.to(tl.int64) * n + row, y.to(out_ptr.dtype.element_ty), mask=row < n)


GEMV = Kernel(
    _gemv,
    configs=tuple(
        triton.Config({"BLOCK_N": n}, num_warps=warps, num_stages=1) for n, warps in ((4, 1), (8, 2), (8, 4), (2, 1))
    ),
    slow=triton.Config({"BLOCK_N": 128}),
    key=("n", "k", "BITS", "GROUP", "ROWS", "PAIRS", "NEST"),
)
