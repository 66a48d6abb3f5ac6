"""Any table of levels: w = levels[code] * scale, and y = x @ w.T with the weight decoded inside the product.

    dequantize   w[i, j] = levels[t(i), c[i, j]] * scale[i, g(j)]      t(i) = i // rows (0 when rows is 0)
    matmul       y = x @ w.T, accumulated in float32                   g(j) = j // group

The codes are 1 to 8 bits wide, packed by `kernels.packing`; one family of kernels serves NF4, FP4, k-means and any
other table. Levels are rounded to the dtype of x in the product, scales are not: they are applied to float32 sums.
A row of x with an infinity or NaN gives infinities or NaN in its row of y alone.
Table look-up in the product: Guo et al. 2024 (FLUTE), arXiv 2407.10960.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.checks import check_dtype, check_x, spread
from kernels.examples import codebook_examples, codebook_sized
from kernels.launchers import decode, multiply, weight_arguments
from kernels.nested import Scale, scale_values
from kernels.op import DECODED, MULTIPLIED, Op
from kernels.packing import unpack

__all__ = ["OPERATIONS", "codebook_dequantize", "codebook_matmul"]

Group = int | str


def dequantize_reference(
    codes: Tensor,
    levels: Tensor,
    scale: Scale | None,
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
    return (w if scale is None else w * spread(scale_values(scale, wide), k, group)).to(dtype)


def matmul_reference(
    x: Tensor, codes: Tensor, levels: Tensor, scale: Scale | None, *, bits: int, group: Group, rows: int
) -> Tensor:
    """The definition of `codebook_matmul`, in float32, or in float64 when `x` is float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    shape = (codes.shape[0], x.shape[-1])
    w = dequantize_reference(codes, levels, scale, shape=shape, bits=bits, group=group, rows=rows, dtype=wide)
    return (x.to(wide) @ w.T).to(x.dtype)


def codebook_dequantize(
    codes: Tensor,
    levels: Tensor,
    scale: Scale | None,
    *,
    shape: tuple[int, int],
    bits: int,
    group: Group,
    rows: int,
    dtype: torch.dtype,
) -> Tensor:
    """levels[codes] * scale, [n, k] in `dtype`: float32, float16 or bfloat16.

    `codes` [n, packed_bytes(k, bits)] uint8; `levels` [tables, L] float with L <= 2**bits, `rows` rows of the weight to
    a table (0: one table); `scale` [n, ceil(k / group)], [n, 1] for "channel", [1, 1] for "tensor", a `NestedScale`
    of as many codes, or None. A code of L or more decodes to 0.
    Raises ValueError for shapes that do not belong together, TypeError for a wrong dtype.
    """
    check_dtype("dtype", dtype)
    return decode(weight_arguments(codes, levels, scale, None, shape, bits, group, rows), dtype, codes.device)


def codebook_matmul(
    x: Tensor, codes: Tensor, levels: Tensor, scale: Scale | None, *, bits: int, group: Group, rows: int
) -> Tensor:
    """x [..., k] @ (levels[codes] * scale).T -> [..., n] in the dtype of `x`, accumulated in float32.

    The other arguments, and the errors, are those of `codebook_dequantize`; k is the last dimension of `x`.
    """
    check_x(x)
    shape = (len(codes) if codes.ndim else 0, x.shape[-1])
    return multiply(x, weight_arguments(codes, levels, scale, None, shape, bits, group, rows))


OPERATIONS = (
    Op(
        name="codebook_dequantize",
        formula="w = levels[codes] * scale",
        source="Dettmers et al. 2023 (QLoRA), arXiv 2305.14314",
        reference=dequantize_reference,
        triton=codebook_dequantize,
        examples=lambda dtype, device: codebook_examples(dtype, device, product=False, nested=True),
        sized=lambda m, n, k, dtype, device: codebook_sized(m, n, k, dtype, device, product=False),
        tolerance=DECODED,
    ),
    Op(
        name="codebook_matmul",
        formula="y = x @ (levels[codes] * scale).T",
        source="Guo et al. 2024 (FLUTE), arXiv 2407.10960",
        reference=matmul_reference,
        triton=codebook_matmul,
        examples=lambda dtype, device: codebook_examples(dtype, device, product=True, nested=True),
        sized=lambda m, n, k, dtype, device: codebook_sized(m, n, k, dtype, device, product=True),
        tolerance=MULTIPLIED,
    ),
)
