"""The gradient of x in y = x @ w.T from the packed weight: dx = dy @ w, the weight decoded inside the product.

    grad   dx[i, j] = sum over r of dy[i, r] * w[r, j],   accumulated in float32

A program owns a tile [BLOCK_M, BLOCK_K] of dx and walks down the n rows of the weight: the tile of codes is read as it
lies, no transposed copy exists, and where the group covers the tile's columns each row of it has one scale. The scale
is multiplied into the weight, not into dy: a gradient in float16 would underflow. Nothing dense of the weight's size
is written. The rows of the weight are shared out among `splits` programs whose partial results are added up in their
order; splits follow from the weight alone, so row i of dx does not depend on how many rows dy has, up to the matrix
unit: dy is the left operand, and Hopper, Blackwell (sm_100) and AMD multiply tiles of few rows by another instruction
(up to 32, 32 and 16 rows) than those of more. Between the two rows agree to rounding.
Source: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3: gradients pass through the frozen quantized weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import affine, codebook
from kernels.checks import check_dtype
from kernels.decoding import row_planes, scales_at, table_of, units_of
from kernels.examples import affine_examples, affine_sized, codebook_examples, codebook_sized
from kernels.gemv import shares
from kernels.launchers import weight_arguments
from kernels.nested import Scale
from kernels.op import MULTIPLIED, Example, Op
from kernels.partials import add_up
from kernels.small import row_block
from kernels.tuning import Kernel, Launch

__all__ = ["OPERATIONS", "affine_grad", "codebook_grad", "multiply_back", "turned"]

Group = int | str


def codebook_reference(
    dy: Tensor, codes: Tensor, levels: Tensor, scale: Scale | None, *, k: int, bits: int, group: Group, rows: int
) -> Tensor:
    """The definition of `codebook_grad`, in float32, or in float64 when `dy` is float64."""
    wide = torch.promote_types(dy.dtype, torch.float32)
    shape = (codes.shape[0], k)
    w = codebook.dequantize_reference(codes, levels, scale, shape=shape, bits=bits, group=group, rows=rows, dtype=wide)
    return (dy.to(wide) @ w).to(dy.dtype)


def affine_reference(
    dy: Tensor, codes: Tensor, scale: Scale, zero: Tensor | None, *, k: int, bits: int, group: Group
) -> Tensor:
    """The definition of `affine_grad`, in float32, or in float64 when `dy` is float64."""
    wide = torch.promote_types(dy.dtype, torch.float32)
    shape = (codes.shape[0], k)
    w = affine.dequantize_reference(codes, scale, zero, shape=shape, bits=bits, group=group, dtype=wide)
    return (dy.to(wide) @ w).to(dy.dtype)


def codebook_grad(
    dy: Tensor, codes: Tensor, levels: Tensor, scale: Scale | None, *, k: int, bits: int, group: Group, rows: int
) -> Tensor:
    """dy [..., n] @ (levels[codes] * scale) -> [..., k] in the dtype of `dy`, accumulated in float32.

    The weight is given as to `codebook_matmul`, with the same errors; `k` is its number of columns, which the packed
    codes do not tell.
    """
    return multiply_back(dy, weight_arguments(codes, levels, scale, None, _shape(codes, k), bits, group, rows))


def affine_grad(
    dy: Tensor, codes: Tensor, scale: Scale, zero: Tensor | None, *, k: int, bits: int, group: Group
) -> Tensor:
    """dy [..., n] @ ((codes - zero) * scale) -> [..., k] in the dtype of `dy`, accumulated in float32.

    The weight is given as to `affine_matmul`, with the same errors; `k` is its number of columns.
    """
    return multiply_back(dy, weight_arguments(codes, None, scale, zero, _shape(codes, k), bits, group, 0))


def _shape(codes: Tensor, k: int) -> tuple[int, int]:
    return (len(codes) if codes.ndim else 0, k)


def multiply_back(dy: Tensor, weight: Mapping[str, Any]) -> Tensor:
    """dy [..., n] @ w -> [..., k]; nothing is launched for an empty batch."""
    check_dtype("dy", dy.dtype)
    n, k = weight["n"], weight["k"]
    if dy.ndim == 0 or dy.shape[-1] != n:
        raise ValueError(f"dy must be [..., {n}] for codes of {n} rows, got shape {list(dy.shape)}")
    flat = dy.reshape(-1, n)
    m = flat.shape[0]
    out = torch.empty(m, k, dtype=dy.dtype, device=dy.device)
    block_m, block_k = row_block(m), _column_block(weight["GROUP"], dy.dtype)
    plain = weight["BITS"] <= 4 and weight["GROUP"] % block_k == 0 and dy.dtype != torch.float32
    block_n = 64 if plain else 32  # larger tiles spill
    splits, share = shares(k, n, 4 * block_n, block_n=block_k)
    part = out if splits == 1 else torch.empty(splits, m, k, dtype=torch.float32, device=dy.device)

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(m, block_m) * triton.cdiv(k, block_k) * splits,)

    batch = {"dy_ptr": flat, "out_ptr": part, "m": m, "dy_row": flat.stride(0), "dy_col": flat.stride(1)}
    fixed = {
        "share": share,
        "BLOCK_K": block_k,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "PTX": GRAD.in_ptx(dy.dtype) and weight["BITS"] == 4 and not weight["ROWS"],
        "UPCAST": GRAD.interpreted,
    }
    if m:
        Launch(GRAD, grid, {**batch, **weight, **fixed}).run()
        if splits > 1:
            add_up(part, out)
    return out.view(*dy.shape[:-1], k)


def _column_block(group: int, dtype: torch.dtype) -> int:
    """Columns of a tile: a power of two that divides the group where that leaves 32 or more, so one scale serves it."""
    largest = 32 if dtype == torch.float32 else 64
    divisor = group & -group
    return min(largest, divisor) if divisor >= 32 else largest


# dy [m, n] by strides, codes [n, row_bytes] uint8, scale and zero [n or 1, groups] -> out [m, k] or [splits, m, k]
@triton.jit
def _grad(
    dy_ptr,
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
    dy_row,
    dy_col,
    row_bytes,
    side_row,
    n_levels,
    share,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    NEST: tl.constexpr,
    PTX: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    down = (m + BLOCK_M - 1) // BLOCK_M
    out_row = tl.program_id(0) % down * BLOCK_M + tl.arange(0, BLOCK_M)
    across = (k + BLOCK_K - 1) // BLOCK_K
    start = tl.program_id(0) // down % across * BLOCK_K
    split = tl.program_id(0) // (down * across)
    col = start + tl.arange(0, BLOCK_K)
    compute = tl.float32 if UPCAST else dy_ptr.dtype.element_ty
    unit = compute if PTX else tl.float32
    centre: tl.constexpr = 1 << (BITS - 1)
    table = table_of(levels_ptr, n_levels, BITS, unit, PAIRS)
    planes = row_planes(levels_ptr, 0, n, n_levels, unit, 0, PTX, PAIRS)
    acc = tl.full((BLOCK_M, BLOCK_K), 0.0, tl.float32)
    for first in range(split * share, tl.minimum(n, split * share + share), BLOCK_N):
        row = first + tl.arange(0, BLOCK_N)
        dy_at = dy_ptr + out_row.to(tl.int64)[:, None] * dy_row + row.to(tl.int64)[None, :] * dy_col
        dy = tl.load(dy_at, mask=(out_row[:, None] < m) & (row[None, :] < n), other=0.0).to(compute)
        w = units_of(
            codes_ptr, levels_ptr, table, planes, row, start, n, row_bytes, n_levels,
            BITS, ROWS, PTX, centre, unit, BLOCK_N, BLOCK_K, PAIRS,
        ).to(tl.float32)  # fmt: skip
        at = row.to(tl.int64)[:, None] * side_row
        inside = row[:, None] < n
        if GROUP != 0:
            if GROUP % BLOCK_K == 0:
                at += start // GROUP
            else:
                at += col[None, :] // GROUP
                inside = (row[:, None] < n) & (col[None, :] < k)
        if zero_ptr is not None:
            w -= tl.load(zero_ptr + at, mask=inside, other=0.0).to(tl.float32) - centre
        if scale_ptr is not None:
            w *= scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, at, inside, NEST)
        acc = tl.dot(dy, w.to(compute), acc, input_precision="ieee")
    out_at = (split.to(tl.int64) * m + out_row.to(tl.int64)[:, None]) * k + col[None, :]
    tl.store(out_ptr + out_at, acc.to(out_ptr.dtype.element_ty), mask=(out_row[:, None] < m) & (col[None, :] < k))


GRAD = Kernel(
    _grad,
    configs=tuple(triton.Config({}, num_warps=4, num_stages=stages) for stages in (3, 4, 2)),
    slow=triton.Config({}),
    key=("n", "k", "BITS", "GROUP", "ROWS", "PAIRS", "NEST", "BLOCK_M"),
)


def turned(example: Example) -> Example:
    """The example of a product as one of its gradient: dy [m, n] drawn anew, strided where x was."""
    arguments = dict(example.arguments)
    x: Tensor = arguments.pop("x")
    draw = torch.Generator().manual_seed(arguments["codes"].numel())
    dy = torch.randn(x.shape[0], len(arguments["codes"]), generator=draw)
    dy = dy if x.is_contiguous() else dy.T.contiguous().T
    return Example(example.label, {"dy": dy.to(x.dtype).to(x.device), **arguments, "k": x.shape[1]})


def _codebook_examples(dtype: torch.dtype, device: str) -> Iterator[Example]:
    return map(turned, codebook_examples(dtype, device, product=True, nested=True))


def _affine_examples(dtype: torch.dtype, device: str) -> Iterator[Example]:
    return map(turned, affine_examples(dtype, device, product=True, nested=True))


OPERATIONS = (
    Op(
        name="codebook_grad",
        formula="dx = dy @ (levels[codes] * scale)",
        source="Dettmers et al. 2023 (QLoRA), arXiv 2305.14314",
        reference=codebook_reference,
        triton=codebook_grad,
        examples=_codebook_examples,
        sized=lambda m, n, k, dtype, device: turned(codebook_sized(m, n, k, dtype, device, product=True)),
        tolerance=MULTIPLIED,
    ),
    Op(
        name="affine_grad",
        formula="dx = dy @ ((codes - zero) * scale)",
        source="Dettmers et al. 2023 (QLoRA), arXiv 2305.14314",
        reference=affine_reference,
        triton=affine_grad,
        examples=_affine_examples,
        sized=lambda m, n, k, dtype, device: turned(affine_sized(m, n, k, dtype, device, product=True)),
        tolerance=MULTIPLIED,
    ),
)
