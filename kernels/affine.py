"""Uniform grids: w = (code - zero) * scale, and y = x @ w.T with the weight decoded inside the product.

    dequantize   w[i, j] = (c[i, j] - z[i, g(j)]) * scale[i, g(j)]     z = 2**(bits - 1) on a symmetric grid
    matmul       y = x @ w.T, accumulated in float32                   g(j) = j // group

The codes are 1 to 8 bits wide, packed by `kernels.packing`; the zero is in units of codes and need not be whole. In
the product a scale that covers a whole step of the loop is applied after the partial dot product, a scale of the row
after all of it: on a symmetric grid code - zero is a small integer, exact in every dtype.
Weight-only product: Frantar et al. 2022 (GPTQ), arXiv 2210.17323, section 4.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_codes, check_dtype, check_side, check_x, group_size, row_stride, spread
from kernels.examples import affine_examples, affine_sized
from kernels.launchers import decode, multiply
from kernels.op import DECODED, MULTIPLIED, Op
from kernels.packing import packed_bytes, unpack
from kernels.tuning import Kernel

__all__ = ["OPERATIONS", "affine_dequantize", "affine_matmul"]

Group = int | str


def dequantize_reference(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    *,
    shape: tuple[int, int],
    bits: int,
    group: Group,
    dtype: torch.dtype,
) -> Tensor:
    """The definition of `affine_dequantize`, in float32, or in float64 when that is the `dtype`."""
    k = shape[1]
    wide = torch.promote_types(dtype, torch.float32)
    offset = float(1 << (bits - 1)) if zero is None else spread(zero.to(wide), k, group)
    return ((unpack(codes, bits, k).to(wide) - offset) * spread(scale.to(wide), k, group)).to(dtype)


def matmul_reference(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, *, bits: int, group: Group
) -> Tensor:
    """The definition of `affine_matmul`, in float32, or in float64 when `x` is float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    shape = (codes.shape[0], x.shape[-1])
    w = dequantize_reference(codes, scale, zero, shape=shape, bits=bits, group=group, dtype=wide)
    return (x.to(wide) @ w.T).to(x.dtype)


def affine_dequantize(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    *,
    shape: tuple[int, int],
    bits: int,
    group: Group,
    dtype: torch.dtype,
) -> Tensor:
    """(codes - zero) * scale, [n, k] in `dtype`: float32, float16 or bfloat16.

    `codes` [n, packed_bytes(k, bits)] uint8; `scale`, and `zero` in units of codes, [n, ceil(k / group)], [n, 1] for
    "channel" or [1, 1] for "tensor", floating; without `zero` the grid is symmetric and its zero is 2**(bits - 1).
    Raises ValueError for shapes that do not belong together, TypeError for a wrong dtype.
    """
    check_dtype("dtype", dtype)
    arguments = _weight_arguments(codes, scale, zero, shape, bits, group)
    return decode(DEQUANTIZE, arguments, dtype, codes.device)


def affine_matmul(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, *, bits: int, group: Group) -> Tensor:
    """x [..., k] @ ((codes - zero) * scale).T -> [..., n] in the dtype of `x`, accumulated in float32.

    The other arguments, and the errors, are those of `affine_dequantize`; k is the last dimension of `x`.
    """
    check_x(x)
    shape = (len(codes) if codes.ndim else 0, x.shape[-1])
    return multiply(MATMUL, x, _weight_arguments(codes, scale, zero, shape, bits, group))


def _weight_arguments(
    codes: Tensor, scale: Tensor, zero: Tensor | None, shape: tuple[int, int], bits: int, group: Group
) -> dict[str, Any]:
    n, k = shape
    check_codes(codes, shape, bits)
    check_side("scale", scale, shape, group)
    check_side("zero", zero, shape, group)
    scale = scale.contiguous()
    return {
        "codes_ptr": codes,
        "scale_ptr": scale,
        "zero_ptr": None if zero is None else zero.contiguous(),
        "n": n,
        "k": k,
        "row_bytes": packed_bytes(k, bits),
        "side_row": row_stride(scale),
        "BITS": bits,
        "GROUP": group_size(k, group),
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
def _shifted(code, zero_ptr, at, mask, BITS: tl.constexpr):
    # codes [BLOCK_N, BLOCK_K] int32 less their zeros, which lie `at` offsets that broadcast to the codes, float32
    if zero_ptr is None:
        w = (code - (1 << (BITS - 1))).to(tl.float32)
    else:
        w = code.to(tl.float32) - tl.load(zero_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return w


# codes [n, row_bytes] uint8, scale and zero [n or 1, groups] -> out [n, k]
@triton.jit
def _dequantize(
    out_ptr,
    codes_ptr,
    scale_ptr,
    zero_ptr,
    n,
    k,
    row_bytes,
    side_row,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    across = (k + BLOCK_K - 1) // BLOCK_K
    row = tl.program_id(0) // across * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.program_id(0) % across * BLOCK_K
    col = start + tl.arange(0, BLOCK_K)
    inside = (row[:, None] < n) & (col[None, :] < k)
    code = _codes(codes_ptr, row, start, n, row_bytes, BITS, BLOCK_N, BLOCK_K)
    side = row.to(tl.int64)[:, None] * side_row
    if GROUP == 0:
        mask = row[:, None] < n
    elif GROUP % BLOCK_K == 0:
        side += start // GROUP
        mask = row[:, None] < n
    else:
        side += col[None, :] // GROUP
        mask = inside
    w = _shifted(code, zero_ptr, side, mask, BITS) * tl.load(scale_ptr + side, mask=mask, other=0.0).to(tl.float32)
    at = row.to(tl.int64)[:, None] * k + col[None, :]
    tl.store(out_ptr + at, w.to(out_ptr.dtype.element_ty), mask=inside)


# x [m, k] by strides, codes [n, row_bytes] uint8, scale and zero [n or 1, groups] -> out [m, n]
@triton.jit
def _matmul(
    x_ptr,
    out_ptr,
    codes_ptr,
    scale_ptr,
    zero_ptr,
    m,
    n,
    k,
    x_row,
    x_col,
    row_bytes,
    side_row,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
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
    side = row.to(tl.int64) * side_row
    acc = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for start in range(0, k, BLOCK_K):
        col = start + tl.arange(0, BLOCK_K)
        x_at = x_ptr + out_row.to(tl.int64)[:, None] * x_row + col.to(tl.int64)[None, :] * x_col
        x = tl.load(x_at, mask=(out_row[:, None] < m) & (col[None, :] < k), other=0.0).to(compute)
        code = _codes(codes_ptr, row, start, n, row_bytes, BITS, BLOCK_N, BLOCK_K)
        if GROUP == 0:
            w = _shifted(code, zero_ptr, side[:, None], row[:, None] < n, BITS)
            acc = tl.dot(x, tl.trans(w.to(compute)), acc, input_precision="ieee")
        elif GROUP % BLOCK_K == 0:
            w = _shifted(code, zero_ptr, side[:, None] + start // GROUP, row[:, None] < n, BITS)
            s = tl.load(scale_ptr + side + start // GROUP, mask=row < n, other=0.0).to(tl.float32)
            acc += tl.dot(x, tl.trans(w.to(compute)), input_precision="ieee") * s[None, :]
        else:
            at = side[:, None] + col[None, :] // GROUP
            inside = (row[:, None] < n) & (col[None, :] < k)
            s = tl.load(scale_ptr + at, mask=inside, other=0.0).to(tl.float32)
            w = _shifted(code, zero_ptr, at, inside, BITS) * s
            acc = tl.dot(x, tl.trans(w.to(compute)), acc, input_precision="ieee")
    if GROUP == 0:
        acc *= tl.load(scale_ptr + side, mask=row < n, other=0.0).to(tl.float32)[None, :]
    out_at = out_row.to(tl.int64)[:, None] * n + row[None, :]
    tl.store(out_ptr + out_at, acc.to(out_ptr.dtype.element_ty), mask=(out_row[:, None] < m) & (row[None, :] < n))


DEQUANTIZE = Kernel(
    _dequantize,
    configs=tuple(triton.Config({"BLOCK_N": n}, num_warps=4) for n in (32, 16, 64)),
    slow=triton.Config({"BLOCK_N": 128}),
    key=("n", "k", "BITS", "GROUP"),
)
MATMUL = Kernel(
    _matmul,
    configs=tuple(
        triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=3)
        for m, n, warps in ((16, 64, 8), (16, 32, 4), (64, 64, 8))
    ),
    slow=triton.Config({"BLOCK_M": 32, "BLOCK_N": 128}),
    key=("n", "k", "M_BUCKET", "BITS", "GROUP"),
)
OPERATIONS = (
    Op(
        name="affine_dequantize",
        formula="w = (codes - zero) * scale",
        source="Jacob et al. 2018, arXiv 1712.05877",
        reference=dequantize_reference,
        triton=affine_dequantize,
        examples=lambda dtype, device: affine_examples(dtype, device, product=False),
        sized=lambda m, n, k, dtype, device: affine_sized(m, n, k, dtype, device, product=False),
        tolerance=DECODED,
    ),
    Op(
        name="affine_matmul",
        formula="y = x @ ((codes - zero) * scale).T",
        source="Frantar et al. 2022 (GPTQ), arXiv 2210.17323",
        reference=matmul_reference,
        triton=affine_matmul,
        examples=lambda dtype, device: affine_examples(dtype, device, product=True),
        sized=lambda m, n, k, dtype, device: affine_sized(m, n, k, dtype, device, product=True),
        tolerance=MULTIPLIED,
    ),
)
