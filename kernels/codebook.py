"""Any table of levels: w = levels[code] * scale, and y = x @ w.T with the weight decoded inside the product.

    dequantize   w[i, j] = levels[t(i), c[i, j]] * scale[i, g(j)]      t(i) = i // rows (0 when rows is 0)
    matmul       y = x @ w.T, accumulated in float32                   g(j) = j // group

The codes are 1 to 8 bits wide, packed by `kernels.packing`; one kernel serves NF4, FP4, k-means and any other table.
In the product a scale that covers a whole step of the loop is applied after the partial dot product, a scale of the
row after all of it, so that rounding to a half precision touches the levels alone.
Table look-up in the product: Guo et al. 2024 (FLUTE), arXiv 2407.10960.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_codes, check_dtype, check_side, check_x, group_size, row_stride, spread
from kernels.examples import codebook_examples, codebook_sized
from kernels.launchers import decode, multiply
from kernels.op import DECODED, MULTIPLIED, Op
from kernels.packing import packed_bytes, unpack
from kernels.tuning import Kernel

__all__ = ["OPERATIONS", "codebook_dequantize", "codebook_matmul"]

Group = int | str


def dequantize_reference(
    codes: Tensor,
    levels: Tensor,
    scale: Tensor | None,
    *,
    shape: tuple[int, int],
    bits: int,
    group: Group,
    rows: int,
    dtype: torch.dtype,
) -> Tensor:
    """The definition of `codebook_dequantize`, in float32, or in float64 when that is the `dtype`."""
    n, k = shape
    wide = torch.promote_types(dtype, torch.float32)
    row = torch.arange(n, device=codes.device)
    table = row // rows if rows else torch.zeros_like(row)
    w = levels.to(wide)[table[:, None], unpack(codes, bits, k).long()]
    return (w if scale is None else w * spread(scale.to(wide), k, group)).to(dtype)


def matmul_reference(
    x: Tensor, codes: Tensor, levels: Tensor, scale: Tensor | None, *, bits: int, group: Group, rows: int
) -> Tensor:
    """The definition of `codebook_matmul`, in float32, or in float64 when `x` is float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    shape = (codes.shape[0], x.shape[-1])
    w = dequantize_reference(codes, levels, scale, shape=shape, bits=bits, group=group, rows=rows, dtype=wide)
    return (x.to(wide) @ w.T).to(x.dtype)


def codebook_dequantize(
    codes: Tensor,
    levels: Tensor,
    scale: Tensor | None,
    *,
    shape: tuple[int, int],
    bits: int,
    group: Group,
    rows: int,
    dtype: torch.dtype,
) -> Tensor:
    """levels[codes] * scale, [n, k] in `dtype`: float32, float16 or bfloat16.

    `codes` [n, packed_bytes(k, bits)] uint8; `levels` [tables, L] float with L <= 2**bits, `rows` rows of the weight to
    a table (0: one table); `scale` [n, ceil(k / group)], [n, 1] for "channel", [1, 1] for "tensor", or None. A code of
    L or more decodes to 0. Raises ValueError for shapes that do not belong together, TypeError for a wrong dtype.
    """
    check_dtype("dtype", dtype)
    arguments = _weight_arguments(codes, levels, scale, shape, bits, group, rows)
    return decode(DEQUANTIZE, arguments, dtype, codes.device)


def codebook_matmul(
    x: Tensor, codes: Tensor, levels: Tensor, scale: Tensor | None, *, bits: int, group: Group, rows: int
) -> Tensor:
    """x [..., k] @ (levels[codes] * scale).T -> [..., n] in the dtype of `x`, accumulated in float32.

    The other arguments, and the errors, are those of `codebook_dequantize`; k is the last dimension of `x`.
    """
    check_x(x)
    shape = (len(codes) if codes.ndim else 0, x.shape[-1])
    return multiply(MATMUL, x, _weight_arguments(codes, levels, scale, shape, bits, group, rows))


def _weight_arguments(
    codes: Tensor, levels: Tensor, scale: Tensor | None, shape: tuple[int, int], bits: int, group: Group, rows: int
) -> dict[str, Any]:
    n, k = shape
    check_codes(codes, shape, bits)
    check_side("scale", scale, shape, group)
    check_dtype("levels", levels.dtype)
    scale = None if scale is None else scale.contiguous()
    if rows < 0:
        raise ValueError(f"rows must be 0 (one table) or the rows that share a table, got {rows}")
    tables = triton.cdiv(n, rows) if rows else 1
    if levels.ndim != 2 or levels.shape[0] != tables or not 0 < levels.shape[1] <= 1 << bits:
        raise ValueError(f"levels must be [{tables}, 1 .. {1 << bits}], got {list(levels.shape)}")
    return {
        "codes_ptr": codes,
        "levels_ptr": levels.contiguous(),
        "scale_ptr": scale,
        "n": n,
        "k": k,
        "row_bytes": packed_bytes(k, bits),
        "scale_row": row_stride(scale),
        "n_levels": levels.shape[1],
        "BITS": bits,
        "GROUP": group_size(k, group),
        "ROWS": rows,
    }


@triton.jit
def _codes(codes_ptr, row, start, n, row_bytes, BITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    # rows row[BLOCK_N], columns start .. start + BLOCK_K -> codes [BLOCK_N, BLOCK_K] int32, 0 outside the stored bytes
    base = codes_ptr + row.to(tl.int64)[:, None] * row_bytes
    if BITS == 8:
        at = start + tl.arange(0, BLOCK_K)[None, :]
        code = tl.load(base + at, mask=(row[:, None] < n) & (at < row_bytes), other=0).to(tl.int32)
    elif 8 % BITS == 0:
        at = start * BITS // 8 + tl.arange(0, BLOCK_K * BITS // 8)[None, :]
        packed = tl.load(base + at, mask=(row[:, None] < n) & (at < row_bytes), other=0).to(tl.int32)
        shift = 8 - BITS - BITS * tl.arange(0, 8 // BITS)
        code = tl.reshape((packed[:, :, None] >> shift[None, None, :]) & ((1 << BITS) - 1), (BLOCK_N, BLOCK_K))
    else:
        bit = (start + tl.arange(0, BLOCK_K)[None, :]) * BITS
        at = bit // 8
        high = tl.load(base + at, mask=(row[:, None] < n) & (at < row_bytes), other=0).to(tl.int32)
        low = tl.load(base + at + 1, mask=(row[:, None] < n) & (at + 1 < row_bytes), other=0).to(tl.int32)
        code = ((high * 256 + low) >> (16 - BITS - bit % 8)) & ((1 << BITS) - 1)
    return code


@triton.jit
def _look_up(levels_ptr, table, code, row, n, n_levels, ROWS: tl.constexpr):
    # codes [BLOCK_N, BLOCK_K] -> levels of the same shape; table [2**bits] holds the one table when ROWS is 0
    if ROWS == 0:
        flat = tl.reshape(code, (code.shape[0] * code.shape[1],))
        w = tl.reshape(tl.gather(table, flat, 0), (code.shape[0], code.shape[1]))
    else:
        at = (row // ROWS).to(tl.int64)[:, None] * n_levels + code
        w = tl.load(levels_ptr + at, mask=(row[:, None] < n) & (code < n_levels), other=0.0).to(table.dtype)
    return w


# codes [n, row_bytes] uint8, levels [tables, n_levels], scale [n or 1, groups] -> out [n, k]
@triton.jit
def _dequantize(
    out_ptr,
    codes_ptr,
    levels_ptr,
    scale_ptr,
    n,
    k,
    row_bytes,
    scale_row,
    n_levels,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    across = (k + BLOCK_K - 1) // BLOCK_K
    row = tl.program_id(0) // across * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.program_id(0) % across * BLOCK_K
    col = start + tl.arange(0, BLOCK_K)
    inside = (row[:, None] < n) & (col[None, :] < k)
    entry = tl.arange(0, 1 << BITS)
    table = tl.load(levels_ptr + entry, mask=entry < n_levels, other=0.0).to(tl.float32)
    code = _codes(codes_ptr, row, start, n, row_bytes, BITS, BLOCK_N, BLOCK_K)
    w = _look_up(levels_ptr, table, code, row, n, n_levels, ROWS)
    if scale_ptr is not None:
        scales = scale_ptr + row.to(tl.int64) * scale_row
        if GROUP == 0:
            w *= tl.load(scales, mask=row < n, other=0.0).to(tl.float32)[:, None]
        elif GROUP % BLOCK_K == 0:
            w *= tl.load(scales + start // GROUP, mask=row < n, other=0.0).to(tl.float32)[:, None]
        else:
            w *= tl.load(scales[:, None] + col[None, :] // GROUP, mask=inside, other=0.0).to(tl.float32)
    at = row.to(tl.int64)[:, None] * k + col[None, :]
    tl.store(out_ptr + at, w.to(out_ptr.dtype.element_ty), mask=inside)


# x [m, k] by strides, codes [n, row_bytes] uint8, levels [tables, n_levels], scale [n or 1, groups] -> out [m, n]
@triton.jit
def _matmul(
    x_ptr,
    out_ptr,
    codes_ptr,
    levels_ptr,
    scale_ptr,
    m,
    n,
    k,
    x_row,
    x_col,
    row_bytes,
    scale_row,
    n_levels,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    M_BUCKET: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    down = (m + BLOCK_M - 1) // BLOCK_M
    out_row = tl.program_id(0) % down * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(0) // down * BLOCK_N + tl.arange(0, BLOCK_N)
    compute = tl.float32 if UPCAST else x_ptr.dtype.element_ty
    looked_up = compute if GROUP % BLOCK_K == 0 else tl.float32
    entry = tl.arange(0, 1 << BITS)
    table = tl.load(levels_ptr + entry, mask=entry < n_levels, other=0.0).to(looked_up)
    scales = scale_ptr
    if scale_ptr is not None:
        scales = scale_ptr + row.to(tl.int64) * scale_row
    acc = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for start in range(0, k, BLOCK_K):
        col = start + tl.arange(0, BLOCK_K)
        x_at = x_ptr + out_row.to(tl.int64)[:, None] * x_row + col.to(tl.int64)[None, :] * x_col
        x = tl.load(x_at, mask=(out_row[:, None] < m) & (col[None, :] < k), other=0.0).to(compute)
        code = _codes(codes_ptr, row, start, n, row_bytes, BITS, BLOCK_N, BLOCK_K)
        w = _look_up(levels_ptr, table, code, row, n, n_levels, ROWS)
        if scale_ptr is None or GROUP == 0:
            acc = tl.dot(x, tl.trans(w.to(compute)), acc, input_precision="ieee")
        elif GROUP % BLOCK_K == 0:
            s = tl.load(scales + start // GROUP, mask=row < n, other=0.0).to(tl.float32)
            acc += tl.dot(x, tl.trans(w.to(compute)), input_precision="ieee") * s[None, :]
        else:
            inside = (row[:, None] < n) & (col[None, :] < k)
            w *= tl.load(scales[:, None] + col[None, :] // GROUP, mask=inside, other=0.0).to(tl.float32)
            acc = tl.dot(x, tl.trans(w.to(compute)), acc, input_precision="ieee")
    if scale_ptr is not None and GROUP == 0:
        acc *= tl.load(scales, mask=row < n, other=0.0).to(tl.float32)[None, :]
    at = out_row.to(tl.int64)[:, None] * n + row[None, :]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=(out_row[:, None] < m) & (row[None, :] < n))


DEQUANTIZE = Kernel(
    _dequantize,
    configs=tuple(triton.Config({"BLOCK_N": n}, num_warps=4) for n in (32, 16, 64)),
    slow=triton.Config({"BLOCK_N": 128}),
    key=("n", "k", "BITS", "GROUP", "ROWS"),
)
MATMUL = Kernel(
    _matmul,
    configs=tuple(
        triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=3)
        for m, n, warps in ((16, 64, 8), (16, 32, 4), (64, 64, 8))
    ),
    slow=triton.Config({"BLOCK_M": 32, "BLOCK_N": 128}),
    key=("n", "k", "M_BUCKET", "BITS", "GROUP", "ROWS"),
)
OPERATIONS = (
    Op(
        name="codebook_dequantize",
        formula="w = levels[codes] * scale",
        source="Dettmers et al. 2023 (QLoRA), arXiv 2305.14314",
        reference=dequantize_reference,
        triton=codebook_dequantize,
        examples=lambda dtype, device: codebook_examples(dtype, device, product=False),
        sized=lambda m, n, k, dtype, device: codebook_sized(m, n, k, dtype, device, product=False),
        tolerance=DECODED,
    ),
    Op(
        name="codebook_matmul",
        formula="y = x @ (levels[codes] * scale).T",
        source="Guo et al. 2024 (FLUTE), arXiv 2407.10960",
        reference=matmul_reference,
        triton=codebook_matmul,
        examples=lambda dtype, device: codebook_examples(dtype, device, product=True),
        sized=lambda m, n, k, dtype, device: codebook_sized(m, n, k, dtype, device, product=True),
        tolerance=MULTIPLIED,
    ),
)
