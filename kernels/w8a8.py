"""y = x @ w.T in whole numbers: 8-bit weights times x rounded to 8 bits row by row, at the time of the product.

    a[i]  = max |x[i, :]| / 127                    q[i, j] = round(x[i, j] / a[i])      halves to even, in float32
    y     = a[i] * sum over groups g of scale[j, g] * (q @ (c - 128).T)[i, j, g]

The inner sums are of integers and so exact in any order; groups are added in float32, splits in their order, and row i
of y does not depend on the other rows. A row of x that is not finite gives a row of NaN; a row of zeros gives zeros.
Source: Dettmers et al. 2022 (LLM.int8()), arXiv 2208.07339, section 2; dynamic scales a row: Xiao et al. 2023
(SmoothQuant), arXiv 2211.10438, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_codes, check_side, check_x, group_size, spread
from kernels.examples import w8a8_examples, w8a8_sized
from kernels.gemv import shares
from kernels.op import Op, Tolerance
from kernels.partials import add_up
from kernels.small import column_block, row_block
from kernels.tuning import Kernel, Launch

__all__ = ["OPERATIONS", "w8a8_matmul"]

Group = int | str
LONGEST = 1 << 17  # columns that share a scale: 2**17 products of at most 127 * 128 still fit in 31 bits


def matmul_reference(x: Tensor, codes: Tensor, scale: Tensor, *, group: Group) -> Tensor:
    """The definition of `w8a8_matmul`; the codes of x are found in float32 whatever the dtype of `x`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    values = x.float()
    step = values.abs().amax(-1, keepdim=True) / 127
    step = torch.where(values.isfinite().all(-1, keepdim=True), step, torch.nan)
    q = torch.round(values / torch.where(step > 0, step, 1.0))
    w = (codes.to(wide) - 128) * spread(scale.to(wide), x.shape[-1], group)
    return (q.to(wide) @ w.T * step.to(wide)).to(x.dtype)


def w8a8_matmul(x: Tensor, codes: Tensor, scale: Tensor, *, group: Group) -> Tensor:
    """x [..., k], rounded to 8 bits a row, @ ((codes - 128) * scale).T -> [..., n] in the dtype of `x`.

    `codes` [n, k] uint8 and `scale` [n, ceil(k / group)], [n, 1] or [1, 1] are a symmetric grid of `affine_matmul`
    of 8 bits. Raises ValueError for shapes that do not belong together or for more than 2**17 columns under one scale,
    TypeError for a wrong dtype.
    """
    check_x(x)
    n, k = shape = (len(codes) if codes.ndim else 0, x.shape[-1])
    check_codes(codes, shape, 8)
    check_side("scale", scale, shape, group)
    if group_size(k, group) == 0 and k > LONGEST:
        raise ValueError(f"{k} columns share a scale, the sums of {LONGEST} fit in 32 bits: use groups")
    scale = scale.contiguous()
    flat = x.reshape(-1, k)
    m = flat.shape[0]
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if m:
        q = torch.empty(m, k, dtype=torch.int8, device=x.device)
        step = torch.empty(m, dtype=torch.float32, device=x.device)
        _round_rows(flat, q, step)
        side_row = scale.shape[1] if scale.shape[0] > 1 else 0
        weight = {"codes_ptr": codes, "scale_ptr": scale, "k": k, "side_row": side_row, "GROUP": group_size(k, group)}
        _multiply(q, step, out, weight)
    return out.view(*x.shape[:-1], n)


def _round_rows(x: Tensor, q: Tensor, step: Tensor) -> None:
    m, k = x.shape

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(m, meta["BLOCK_M"]),)

    given = {"x_ptr": x, "q_ptr": q, "step_ptr": step, "m": m, "k": k, "x_row": x.stride(0), "x_col": x.stride(1)}
    Launch(ROUND, grid, given).run()


def _multiply(q: Tensor, step: Tensor, out: Tensor, weight: Mapping[str, Any]) -> None:
    (m, n), k = out.shape, weight["k"]
    block_k = max(32, column_block(weight["GROUP"], torch.float16))  # the least that a product of bytes takes
    block_m = row_block(m)
    splits, share = shares(n, k, 4 * block_k, block_n=64)
    part = out if splits == 1 else torch.empty(splits, m, n, dtype=torch.float32, device=q.device)

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(m, block_m) * triton.cdiv(n, meta["BLOCK_N"]) * splits,)

    batch = {"q_ptr": q, "step_ptr": step, "out_ptr": part, "m": m, "n": n}
    fixed = {"share": share // block_k, "BLOCK_M": block_m, "BLOCK_K": block_k}
    Launch(MATMUL, grid, {**batch, **weight, **fixed}).run()
    if splits > 1:
        add_up(part, out)


# x [m, k] by strides -> q [m, k] int8, step [m] float32
@triton.jit
def _round(x_ptr, q_ptr, step_ptr, m, k, x_row, x_col, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    base = x_ptr + row.to(tl.int64)[:, None] * x_row
    largest = tl.full((BLOCK_M, BLOCK_K), 0.0, tl.float32)
    odd = tl.full((BLOCK_M, BLOCK_K), 0.0, tl.float32)
    for start in range(0, k, BLOCK_K):
        col = start + tl.arange(0, BLOCK_K)
        inside = (row[:, None] < m) & (col[None, :] < k)
        x = tl.load(base + col.to(tl.int64)[None, :] * x_col, mask=inside, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(x))
        odd += x * 0.0  # NaN once x is not finite
    step = tl.math.div_rn(tl.max(largest, axis=1), tl.full((BLOCK_M,), 127.0, tl.float32)) + tl.sum(odd, axis=1)
    tl.store(step_ptr + row, step, mask=row < m)
    by = tl.where(step > 0, step, 1.0)[:, None] + tl.full((BLOCK_M, BLOCK_K), 0.0, tl.float32)
    for start in range(0, k, BLOCK_K):
        col = start + tl.arange(0, BLOCK_K)
        inside = (row[:, None] < m) & (col[None, :] < k)
        x = tl.load(base + col.to(tl.int64)[None, :] * x_col, mask=inside, other=0.0).to(tl.float32)
        q = (tl.math.div_rn(x, by) + 12582912.0) - 12582912.0  # 1.5 * 2**23: what is left is a whole number
        q = tl.where((q >= -127.0) & (q <= 127.0), q, 0.0)
        tl.store(q_ptr + row.to(tl.int64)[:, None] * k + col[None, :], q.to(tl.int8), mask=inside)


# q [m, k] int8, step [m], codes [n, k] uint8, scale [n or 1, groups] -> out [m, n] or [splits, m, n]
@triton.jit
def _matmul(
    q_ptr,
    step_ptr,
    out_ptr,
    codes_ptr,
    scale_ptr,
    m,
    n,
    k,
    side_row,
    share,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    across = (m + BLOCK_M - 1) // BLOCK_M
    down = (n + BLOCK_N - 1) // BLOCK_N
    out_row = tl.program_id(0) % across * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(0) // across % down * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(0) // (across * down)
    side = row.to(tl.int64) * side_row
    total = tl.full((BLOCK_N, BLOCK_M), 0, tl.int32)
    acc = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
    blocks = (k + BLOCK_K - 1) // BLOCK_K
    for block in range(split * share, tl.minimum(blocks, split * share + share)):
        start = block * BLOCK_K  # so the compiler sees that it is aligned
        col = start + tl.arange(0, BLOCK_K)
        q_at = q_ptr + out_row.to(tl.int64)[None, :] * k + col[:, None]
        q = tl.load(q_at, mask=(out_row[None, :] < m) & (col[:, None] < k), other=0)
        inside = (row[:, None] < n) & (col[None, :] < k)
        code = tl.load(codes_ptr + row.to(tl.int64)[:, None] * k + col[None, :], mask=inside, other=128)
        w = (code ^ 128).to(tl.int8, bitcast=True)
        if GROUP == 0:
            total = tl.dot(w, q, total, out_dtype=tl.int32)
        elif GROUP % BLOCK_K == 0:
            s = tl.load(scale_ptr + side + start // GROUP, mask=row < n, other=0.0).to(tl.float32)
            acc += tl.dot(w, q, out_dtype=tl.int32).to(tl.float32) * s[:, None]
        else:
            for g in range(start // GROUP, (tl.minimum(start + BLOCK_K, k) - 1) // GROUP + 1):
                own = tl.where(col[None, :] // GROUP == g, w, 0).to(tl.int8)
                s = tl.load(scale_ptr + side + g, mask=row < n, other=0.0).to(tl.float32)
                acc += tl.dot(own, q, out_dtype=tl.int32).to(tl.float32) * s[:, None]
    if GROUP == 0:
        acc = total.to(tl.float32) * tl.load(scale_ptr + side, mask=row < n, other=0.0).to(tl.float32)[:, None]
    acc *= tl.load(step_ptr + out_row, mask=out_row < m, other=0.0)[None, :]
    at = (split.to(tl.int64) * m + out_row.to(tl.int64)[None, :]) * n + row[:, None]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=(out_row[None, :] < m) & (row[:, None] < n))


ROUND = Kernel(
    _round,
    configs=(
        triton.Config({"BLOCK_M": 1, "BLOCK_K": 2048}, num_warps=4),
        triton.Config({"BLOCK_M": 4, "BLOCK_K": 512}, num_warps=4),
    ),
    slow=triton.Config({"BLOCK_M": 64, "BLOCK_K": 1024}),
    key=("k",),
)
MATMUL = Kernel(
    _matmul,
    configs=tuple(
        triton.Config({"BLOCK_N": n}, num_warps=warps, num_stages=stages)
        for n, warps, stages in ((64, 4, 4), (128, 8, 4), (128, 4, 3))
    ),
    slow=triton.Config({"BLOCK_N": 256}),
    key=("n", "k", "GROUP", "BLOCK_M"),
)
OPERATIONS = (
    Op(
        name="w8a8_matmul",
        formula="y = a * round(x / a) @ ((codes - 128) * scale).T",
        source="Xiao et al. 2023 (SmoothQuant), arXiv 2211.10438",
        reference=matmul_reference,
        triton=w8a8_matmul,
        examples=w8a8_examples,
        sized=w8a8_sized,
        tolerance=Tolerance(
            {torch.float32: 2**-21, torch.float16: 2**-11, torch.bfloat16: 2**-8},
            "sums of integers are exact; scales and the sum over groups are rounded in float32, the output once",
        ),
    ),
)
