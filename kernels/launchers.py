"""What is done with a quantized weight, of either family: decode it, and multiply by it.

The product takes one of two kernels by the number of rows of x: up to `GEMV_ROWS` rows `kernels.gemv`, more rows
`kernels.small`. Each adds up in an order that the weight alone decides, so row i of the product is the same bit by bit
for every number of rows on one side of that border; the two sides agree to rounding. A group that no power of two
from 8 up divides has no kernel for few rows, and all its products are of one kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kernels.checks import check_codes, check_dtype, check_side, group_size, side_shape
from kernels.dequantize import dequantize
from kernels.gemv import GEMV_ROWS, gemv, piece
from kernels.nested import NestedScale, Scale, scale_arguments
from kernels.packing import packed_bytes
from kernels.small import small

__all__ = ["decode", "multiply", "weight_arguments"]


def weight_arguments(
    codes: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    shape: tuple[int, int],
    bits: int,
    group: int | str,
    rows: int,
) -> dict[str, Any]:
    """The arguments of a kernel that belong to the weight [n, k], by name; without `levels` it is a uniform grid.

    Raises ValueError for shapes that do not belong together, TypeError for a wrong dtype.
    """
    n, k = shape
    check_codes(codes, shape, bits)
    nested = isinstance(scale, NestedScale)
    check_side("scale", None if isinstance(scale, NestedScale) else scale, shape, group)
    check_side("zero", zero, shape, group)
    sides = side_shape(shape, group)
    if isinstance(scale, NestedScale) and scale.codes.numel() != sides[0] * sides[1]:
        raise ValueError(f"nested scales must be {list(sides)} codes for {[n, k]}, got {list(scale.codes.shape)}")
    if levels is not None:
        check_dtype("levels", levels.dtype)
        if rows < 0:
            raise ValueError(f"rows must be 0 (one table) or the rows that share a table, got {rows}")
        tables = -(-n // rows) if rows else 1
        if levels.ndim != 2 or levels.shape[0] != tables or not 0 < levels.shape[1] <= 1 << bits:
            raise ValueError(f"levels must be [{tables}, 1 .. {1 << bits}], got {list(levels.shape)}")
        levels = levels.contiguous()
    given = nested or scale is not None or zero is not None
    return {
        "codes_ptr": codes,
        "levels_ptr": levels,
        **scale_arguments(scale),
        "zero_ptr": None if zero is None else zero.contiguous(),
        "n": n,
        "k": k,
        "row_bytes": packed_bytes(k, bits),
        "side_row": sides[1] if given and sides[0] > 1 else 0,
        "n_levels": 0 if levels is None else levels.shape[1],
        "BITS": bits,
        "GROUP": group_size(k, group) if given else 0,
        "ROWS": rows,
    }


def decode(weight: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weight [n, k] in `dtype`."""
    out = torch.empty(weight["n"], weight["k"], dtype=dtype, device=device)
    dequantize(out, weight)
    return out


def multiply(x: Tensor, weight: Mapping[str, Any]) -> Tensor:
    """x [..., k] @ w.T -> [..., n] in the dtype of `x`; nothing is launched for an empty batch."""
    flat = x.reshape(-1, weight["k"])
    m = flat.shape[0]
    out = torch.empty(m, weight["n"], dtype=x.dtype, device=x.device)
    if m:
        few = m <= GEMV_ROWS and piece(weight["GROUP"]) >= 8
        (gemv if few else small)(flat, out, weight)
    return out.view(*x.shape[:-1], weight["n"])
