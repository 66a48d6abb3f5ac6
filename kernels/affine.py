"""Uniform grids: w = (code - zero) * scale, and y = x @ w.T with the weight decoded inside the product.

    dequantize   w[i, j] = (c[i, j] - z[i, g(j)]) * scale[i, g(j)]     z = 2**(bits - 1) on a symmetric grid
    matmul       y = x @ w.T, accumulated in float32                   g(j) = j // group

The codes are 1 to 8 bits wide, packed by `kernels.packing`; the zero is in units of codes and need not be whole. In the
product the codes are centred, whole numbers that every dtype holds exactly, and zero and scale are applied to float32
sums: x @ (c - z).T = x @ c.T - z * sum(x). A row of x with an infinity or NaN gives infinities or NaN in its row of y
alone; with zeros, NaN may stand where the formula gives an infinity.
Weight-only product: Frantar et al. 2022 (GPTQ), arXiv 2210.17323, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.checks import check_dtype, check_x, spread
from kernels.examples import affine_examples, affine_sized
from kernels.launchers import decode, multiply, weight_arguments
from kernels.nested import Scale, scale_values
from kernels.op import DECODED, MULTIPLIED, Op
from kernels.packing import unpack

__all__ = ["OPERATIONS", "affine_dequantize", "affine_matmul"]

Group = int | str


def dequantize_reference(
    codes: Tensor,
    scale: Scale,
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
    return ((unpack(codes, bits, k).to(wide) - offset) * spread(scale_values(scale, wide), k, group)).to(dtype)


def matmul_reference(x: Tensor, codes: Tensor, scale: Scale, zero: Tensor | None, *, bits: int, group: Group) -> Tensor:
    """The definition of `affine_matmul`, in float32, or in float64 when `x` is float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    shape = (codes.shape[0], x.shape[-1])
    w = dequantize_reference(codes, scale, zero, shape=shape, bits=bits, group=group, dtype=wide)
    return (x.to(wide) @ w.T).to(x.dtype)


def affine_dequantize(
    codes: Tensor,
    scale: Scale,
    zero: Tensor | None,
    *,
    shape: tuple[int, int],
    bits: int,
    group: Group,
    dtype: torch.dtype,
) -> Tensor:
    """(codes - zero) * scale, [n, k] in `dtype`: float32, float16 or bfloat16.

    `codes` [n, packed_bytes(k, bits)] uint8; `scale`, and `zero` in units of codes, [n, ceil(k / group)], [n, 1] for
    "channel" or [1, 1] for "tensor", floating; without `zero` the grid is symmetric and its zero is 2**(bits - 1). The
    scales may also be a `NestedScale` of as many codes.
    Raises ValueError for shapes that do not belong together, TypeError for a wrong dtype.
    """
    check_dtype("dtype", dtype)
    return decode(weight_arguments(codes, None, scale, zero, shape, bits, group, 0), dtype, codes.device)


def affine_matmul(x: Tensor, codes: Tensor, scale: Scale, zero: Tensor | None, *, bits: int, group: Group) -> Tensor:
    """x [..., k] @ ((codes - zero) * scale).T -> [..., n] in the dtype of `x`, accumulated in float32.

    The other arguments, and the errors, are those of `affine_dequantize`; k is the last dimension of `x`.
    """
    check_x(x)
    shape = (len(codes) if codes.ndim else 0, x.shape[-1])
    return multiply(x, weight_arguments(codes, None, scale, zero, shape, bits, group, 0))


OPERATIONS = (
    Op(
        name="affine_dequantize",
        formula="w = (codes - zero) * scale",
        source="Jacob et al. 2018, arXiv 1712.05877",
        reference=dequantize_reference,
        triton=affine_dequantize,
        examples=lambda dtype, device: affine_examples(dtype, device, product=False, nested=True),
        sized=lambda m, n, k, dtype, device: affine_sized(m, n, k, dtype, device, product=False),
        tolerance=DECODED,
    ),
    Op(
        name="affine_matmul",
        formula="y = x @ ((codes - zero) * scale).T",
        source="Frantar et al. 2022 (GPTQ), arXiv 2210.17323",
        reference=matmul_reference,
        triton=affine_matmul,
        examples=lambda dtype, device: affine_examples(dtype, device, product=True, nested=True),
        sized=lambda m, n, k, dtype, device: affine_sized(m, n, k, dtype, device, product=True),
        tolerance=MULTIPLIED,
    ),
)
