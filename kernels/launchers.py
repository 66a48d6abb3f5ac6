"""What is done with a quantized weight, of either family: decode it, and multiply by it.

Products take `kernels.small`, which adds up in an order that the weight and the dtype alone decide: row i of the
product is the same bit by bit for every number of rows, with or without a zero point (on AMD's GPUs to rounding between
up to 16 rows and more, see there). A single row with 4-bit codes takes `kernels.gemv` instead, which agrees with it to
rounding; inside `rows_alike` it does not, and its bits are then those of more rows too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from kernels.checks import check_codes, check_dtype, check_side, group_size, side_shape
from kernels.dequantize import dequantize
from kernels.gemv import gemv, piece
from kernels.nested import NestedScale, Scale, scale_arguments
from kernels.packing import packed_bytes
from kernels.small import small

__all__ = ["alone", "decode", "multiply", "rows_alike", "weight_arguments"]

_ALIKE: ContextVar[bool] = ContextVar("alike", default=False)


def weight_arguments(
    codes: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    shape: tuple[int, int],
    bits: int,
    group: int | str,
    rows: int,
    *,
    long: bool = False,
    pairs: bool = False,
) -> dict[str, Any]:
    """The arguments of a kernel that belong to the weight [n, k], by name; without `levels` it is a uniform grid.

    A `long` row may hold 2**31 bits and more. Of `pairs` a code stands for two columns, and `levels` are [L, 2].
    Raises ValueError for shapes that do not belong together, TypeError for a wrong dtype.
    """
    n, k = shape
    codes_in_row = -(-k // 2) if pairs else k
    check_codes(codes, (n, codes_in_row), bits, long=long)
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
        if pairs and (levels.ndim != 2 or levels.shape[1] != 2 or not 0 < levels.shape[0] <= 1 << bits):
            raise ValueError(f"levels of pairs must be [1 .. {1 << bits}, 2], got {list(levels.shape)}")
        if not pairs and (levels.ndim != 2 or levels.shape[0] != tables or not 0 < levels.shape[1] <= 1 << bits):
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
        "row_bytes": packed_bytes(codes_in_row, bits),
        "side_row": sides[1] if given and sides[0] > 1 else 0,
        "n_levels": 0 if levels is None else levels.shape[0 if pairs else 1],
        "BITS": bits,
        "GROUP": group_size(k, group) if given else 0,
        "ROWS": rows,
        "PAIRS": pairs,
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
        (gemv if alone(m) and weight["BITS"] == 4 and piece(weight["GROUP"]) >= 8 else small)(flat, out, weight)
    return out.view(*x.shape[:-1], weight["n"])


def alone(m: int) -> bool:
    """Whether a product of `m` rows is one for a kernel that takes a single row."""
    return m == 1 and not _ALIKE.get()


@contextmanager
def rows_alike() -> Iterator[None]:
    """Inside, row i of a product does not depend on the number of rows, one included, at some cost for a single row."""
    token = _ALIKE.set(True)
    try:
        yield
    finally:
        _ALIKE.reset(token)
