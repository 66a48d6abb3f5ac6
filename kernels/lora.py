"""A quantized weight with a low-rank update, in one product: y = x @ w.T + inner @ b.T.

    inner   [m, r] = scaling * x @ a.T, computed beforehand: it is small, and autograd then knows the factor a
    lora    y[i, j] = sum over c of x[i, c] * w[j, c]  +  sum over q of inner[i, q] * b[j, q],   in float32

The product is the loop of `kernels.small`. The update is added to the tile of y, where the columns are shared
out to the first share's, while that is still in registers: y is not read back for it. The rank is at most 64; it is
filled up to a power of two, 16 or more, for the matrix unit. Beside a half precision x the factors are multiplied in
TF32 on NVIDIA and gfx942, whose 10 bits are no fewer than those of x; beside float32, exactly.
Source: Hu et al. 2021 (LoRA), arXiv 2106.09685, over the quantized base of Dettmers et al. 2023, arXiv 2305.14314.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import affine, codebook
from kernels.checks import check_x
from kernels.examples import affine_examples, affine_sized, codebook_examples, codebook_sized
from kernels.gemv import shares
from kernels.launchers import weight_arguments
from kernels.nested import Scale
from kernels.op import MULTIPLIED, Example, Op
from kernels.partials import add_up
from kernels.small import column_block, product_of, row_block
from kernels.tuning import Kernel, Launch

__all__ = ["LARGEST_RANK", "OPERATIONS", "affine_lora", "all_updated", "codebook_lora", "multiply_updated", "updated"]

Group = int | str
LARGEST_RANK = 64


def codebook_reference(
    x: Tensor,
    codes: Tensor,
    levels: Tensor,
    scale: Scale | None,
    inner: Tensor,
    b: Tensor,
    *,
    bits: int,
    group: Group,
    rows: int,
) -> Tensor:
    """The definition of `codebook_lora`, in float32, or in float64 when `x` is float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = codebook.matmul_reference(x.to(wide), codes, levels, scale, bits=bits, group=group, rows=rows)
    return (y + inner.to(wide) @ b.to(wide).T).to(x.dtype)


def affine_reference(
    x: Tensor, codes: Tensor, scale: Scale, zero: Tensor | None, inner: Tensor, b: Tensor, *, bits: int, group: Group
) -> Tensor:
    """The definition of `affine_lora`, in float32, or in float64 when `x` is float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = affine.matmul_reference(x.to(wide), codes, scale, zero, bits=bits, group=group)
    return (y + inner.to(wide) @ b.to(wide).T).to(x.dtype)


def codebook_lora(
    x: Tensor,
    codes: Tensor,
    levels: Tensor,
    scale: Scale | None,
    inner: Tensor,
    b: Tensor,
    *,
    bits: int,
    group: Group,
    rows: int,
) -> Tensor:
    """x [..., k] @ (levels[codes] * scale).T + inner [..., r] @ b [n, r].T -> [..., n] in the dtype of `x`.

    `inner` and `b` are floating, of any of the dtypes of x, r at most 64. The weight is given as to `codebook_matmul`,
    with the same errors.
    """
    check_x(x)
    weight = weight_arguments(codes, levels, scale, None, _shape(codes, x), bits, group, rows)
    return multiply_updated(x, inner, b, weight)


def affine_lora(
    x: Tensor, codes: Tensor, scale: Scale, zero: Tensor | None, inner: Tensor, b: Tensor, *, bits: int, group: Group
) -> Tensor:
    """x [..., k] @ ((codes - zero) * scale).T + inner [..., r] @ b [n, r].T -> [..., n] in the dtype of `x`.

    `inner` and `b` are floating, of any of the dtypes of x, r at most 64. The weight is given as to `affine_matmul`,
    with the same errors.
    """
    check_x(x)
    return multiply_updated(x, inner, b, weight_arguments(codes, None, scale, zero, _shape(codes, x), bits, group, 0))


def _shape(codes: Tensor, x: Tensor) -> tuple[int, int]:
    return (len(codes) if codes.ndim else 0, x.shape[-1])


def multiply_updated(x: Tensor, inner: Tensor, b: Tensor, weight: Mapping[str, Any]) -> Tensor:
    """x @ w.T + inner @ b.T; nothing is launched for an empty batch."""
    n, k = weight["n"], weight["k"]
    flat = x.reshape(-1, k)
    m, rank = flat.shape[0], b.shape[-1]
    if b.shape != (n, rank) or inner.shape != (*x.shape[:-1], rank) or not 0 < rank <= LARGEST_RANK:
        raise ValueError(
            f"b must be [{n}, r] and inner {[*x.shape[:-1]]} + [r] with r of 1 .. {LARGEST_RANK}, "
            f"got {list(b.shape)} and {list(inner.shape)}"
        )
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    block_m, block_k = row_block(m), column_block(weight["GROUP"], x.dtype, weight["BITS"])
    splits, share = shares(n, k, 4 * block_k, block_n=64)
    part = out if splits == 1 else torch.empty(splits, m, n, dtype=torch.float32, device=x.device)

    def grid(meta: Mapping[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(m, block_m) * triton.cdiv(n, meta["BLOCK_N"]) * splits,)

    batch = {"x_ptr": flat, "out_ptr": part, "m": m, "x_row": flat.stride(0), "x_col": flat.stride(1)}
    update = {"inner_ptr": inner.reshape(-1, rank).contiguous(), "b_ptr": b.contiguous(), "rank": rank}
    in_ptx = LORA.in_ptx(x.dtype) and weight["BITS"] == 4 and not weight["ROWS"] and weight["GROUP"] % block_k == 0
    fixed = {
        "share": share // block_k,
        "BLOCK_M": block_m,
        "BLOCK_K": block_k,
        "BLOCK_R": max(16, triton.next_power_of_2(rank)),
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "PTX": in_ptx,
        "UPCAST": LORA.interpreted,
    }
    if m:
        Launch(LORA if weight["zero_ptr"] is None else ZEROS, grid, {**batch, **weight, **update, **fixed}).run()
        if splits > 1:
            add_up(part, out)
    return out.view(*x.shape[:-1], n)


# x [m, k] by strides, codes [n, row_bytes] uint8, scale and zero [n or 1, groups], inner [m, rank], b [n, rank]
# -> out [m, n] or [splits, m, n]
@triton.jit
def _lora(
    x_ptr,
    out_ptr,
    codes_ptr,
    levels_ptr,
    scale_ptr,
    nest_levels_ptr,
    nest_scale_ptr,
    nest_offset_ptr,
    zero_ptr,
    inner_ptr,
    b_ptr,
    m,
    n,
    k,
    rank,
    x_row,
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
    PTX: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    across = (m + BLOCK_M - 1) // BLOCK_M
    down = (n + BLOCK_N - 1) // BLOCK_N
    out_row = tl.program_id(0) % across * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.program_id(0) // across % down * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(0) // (across * down)
    acc = product_of(
        x_ptr, codes_ptr, levels_ptr, scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, zero_ptr,
        out_row, row, split, m, n, k, x_row, x_col, row_bytes, side_row, n_levels, share,
        BITS, GROUP, ROWS, PAIRS, NEST, PTX, UPCAST, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if split == 0:
        r = tl.arange(0, BLOCK_R)
        b_at = b_ptr + row.to(tl.int64)[:, None] * rank + r[None, :]
        b = tl.load(b_at, mask=(row[:, None] < n) & (r[None, :] < rank), other=0.0).to(tl.float32)
        inner_at = inner_ptr + out_row.to(tl.int64)[None, :] * rank + r[:, None]
        inner = tl.load(inner_at, mask=(out_row[None, :] < m) & (r[:, None] < rank), other=0.0).to(tl.float32)
        acc = tl.dot(b, inner, acc, input_precision=PRECISION)
    at = (split.to(tl.int64) * m + out_row.to(tl.int64)[None, :]) * n + row[:, None]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=(out_row[None, :] < m) & (row[:, None] < n))


def _variants(*settings: tuple[int, int, int]) -> Kernel:
    return Kernel(
        _lora,
        configs=tuple(
            triton.Config({"BLOCK_N": n}, num_warps=warps, num_stages=stages) for n, warps, stages in settings
        ),
        slow=triton.Config({"BLOCK_N": 256}),
        key=("n", "k", "BITS", "GROUP", "ROWS", "PAIRS", "NEST", "BLOCK_M", "BLOCK_R"),
    )


LORA = _variants((64, 4, 4), (128, 8, 4), (64, 8, 4), (128, 8, 3))
ZEROS = _variants((64, 4, 3), (128, 8, 3))  # as in `kernels.small`
RANKS = (8, 1, 16, 3, 64, 33)


def updated(example: Example, rank: int) -> Example:
    """The example of a product with a low-rank update beside it, its factors in float32."""
    arguments = dict(example.arguments)
    x, n = arguments["x"], len(arguments["codes"])
    draw = torch.Generator().manual_seed(arguments["codes"].numel() + rank)
    inner, b = torch.randn(x.shape[0], rank, generator=draw), torch.randn(n, rank, generator=draw)
    return Example(f"{example.label}-r{rank}", {**arguments, "inner": inner.to(x.device), "b": b.to(x.device)})


def all_updated(examples: Iterator[Example]) -> Iterator[Example]:
    return (updated(example, RANKS[i % len(RANKS)]) for i, example in enumerate(examples))


OPERATIONS = (
    Op(
        name="codebook_lora",
        formula="y = x @ (levels[codes] * scale).T + inner @ b.T",
        source="Hu et al. 2021 (LoRA), arXiv 2106.09685",
        reference=codebook_reference,
        triton=codebook_lora,
        examples=lambda dtype, device: all_updated(codebook_examples(dtype, device, product=True, nested=True)),
        sized=lambda m, n, k, dtype, device: updated(codebook_sized(m, n, k, dtype, device, product=True), 16),
        tolerance=MULTIPLIED,
    ),
    Op(
        name="affine_lora",
        formula="y = x @ ((codes - zero) * scale).T + inner @ b.T",
        source="Hu et al. 2021 (LoRA), arXiv 2106.09685",
        reference=affine_reference,
        triton=affine_lora,
        examples=lambda dtype, device: all_updated(affine_examples(dtype, device, product=True, nested=True)),
        sized=lambda m, n, k, dtype, device: updated(affine_sized(m, n, k, dtype, device, product=True), 16),
        tolerance=MULTIPLIED,
    ),
)
