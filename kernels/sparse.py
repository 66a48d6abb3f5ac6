"""Products with sparse weights: two of every four weights kept, or those that a bit mask names.

    two_of_four   w[i, 4 c + index[i, 2 c + j]] = values[i, 2 c + j]      j = 0, 1; all other weights are zero
    bitmask       w[i, j] = values[number of kept weights before (i, j), row by row] where mask[i, j], else zero
    matmul        y = x @ w.T, accumulated in float32

Kept weights are floating; those of 2:4 may be 4-bit codes on an even grid instead, (code - 8) * scale with one scale
for `group` of them. The indices are 2 bits wide, the mask 1 bit, both packed by `kernels.packing`.
Sources: Mishra et al. 2021, arXiv 2104.08378; Han et al. 2015, arXiv 1506.02626.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.checks import check_codes, check_dtype, check_side, check_x, group_size, row_stride, spread
from kernels.op import MULTIPLIED, Op
from kernels.packing import unpack
from kernels.sparse_examples import bitmask_examples, bitmask_sized, two_of_four_examples, two_of_four_sized
from kernels.sparse_products import sparse_multiply
from kernels.sparse_starts import SEGMENT, segments_of

__all__ = ["OPERATIONS", "bitmask_matmul", "two_of_four_matmul"]

Group = int | str
HALF = 8  # the code of zero


def two_of_four_reference(x: Tensor, indices: Tensor, values: Tensor, scale: Tensor | None, *, group: Group) -> Tensor:
    """The definition of `two_of_four_matmul`, in float32, or in float64 when `x` is float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    n, k = indices.shape[0], x.shape[-1]
    cells = -(-k // 4)
    kept = _decoded(values, scale, 2 * cells, group, wide)
    place = unpack(indices, 2, 2 * cells).long() + torch.arange(2 * cells, device=x.device) // 2 * 4
    w = kept.new_zeros(n, 4 * cells).scatter(1, place, kept)[:, :k]
    return (x.to(wide) @ w.T).to(x.dtype)


def bitmask_reference(x: Tensor, mask: Tensor, starts: Tensor, values: Tensor) -> Tensor:
    """The definition of `bitmask_matmul`, in float32, or in float64 when `x` is float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    n, k = mask.shape[0], x.shape[-1]
    count = values.shape[1]
    kept = torch.cat([values[0].to(wide), values.new_zeros(1, dtype=wide)])
    bits = torch.nn.functional.pad(unpack(mask, 1, k).long(), (0, -k % SEGMENT)).view(n, -1, SEGMENT)
    at = starts.long()[:, :, None] + bits.cumsum(2) - bits
    w = kept[torch.where(bits > 0, at, count)].view(n, -1)[:, :k]
    return (x.to(wide) @ w.T).to(x.dtype)


def _decoded(values: Tensor, scale: Tensor | None, count: int, group: Group, dtype: torch.dtype) -> Tensor:
    """Kept weights [rows, count]."""
    if scale is None:
        return values.to(dtype)
    return (unpack(values, 4, count).to(dtype) - HALF) * spread(scale.to(dtype), count, group)


def two_of_four_matmul(x: Tensor, indices: Tensor, values: Tensor, scale: Tensor | None, *, group: Group) -> Tensor:
    """x [..., k] @ w.T -> [..., n] in the dtype of `x`, for w of which two of every four weights of a row are kept.

    With c = ceil(k / 4): `indices` [n, ceil(c / 2)] uint8, two ascending places 0..3 for each four; `values` [n, 2 c]
    floating and `scale` None, or `values` [n, c] uint8, 4-bit codes, and `scale` [n, ceil(2 c / group)], [n, 1] for
    "channel" or [1, 1] for "tensor". Raises ValueError for shapes that do not belong together, TypeError for dtypes.
    """
    check_x(x)
    if indices.ndim != 2 or values.ndim != 2:
        raise ValueError(f"indices and values must be matrices, got {list(indices.shape)} and {list(values.shape)}")
    n, k = indices.shape[0], x.shape[-1]
    kept = 2 * -(-k // 4)
    check_codes(indices, (n, kept), 2)
    coded = _check_values(values, scale, (n, kept), group)
    values = values.contiguous()
    wide = coded and values.shape[1] % 2 == 0 and values.data_ptr() % 2 == 0
    values = values.view(torch.int16) if wide else values
    weight = _weight(indices, None, values, scale, n, k, kept)
    size = group_size(kept, group) if coded else 0
    own = {"CODES": 1 + wide, "GROUP": size, "PIECE": _piece(size)} if coded else {}
    return sparse_multiply(x, {**weight, **own})


def bitmask_matmul(x: Tensor, mask: Tensor, starts: Tensor, values: Tensor) -> Tensor:
    """x [..., k] @ w.T -> [..., n] in the dtype of `x`, for w of which the weights that `mask` names are kept.

    `mask` [n, ceil(k / 8)] uint8, first column in the highest bit; `starts` [n, ceil(k / 512)] as
    `kernels.sparse_starts.mask_starts` gives them; `values` [1, kept] floating. That the mask keeps as many weights as
    there are values is not checked, since nothing waits for the device; no value beyond them is read.
    Raises ValueError for shapes that do not belong together, TypeError for a wrong dtype.
    """
    check_x(x)
    if mask.ndim != 2 or values.ndim != 2 or values.shape[0] != 1:
        raise ValueError(f"mask must be a matrix and values one row, got {list(mask.shape)}, {list(values.shape)}")
    n, k = mask.shape[0], x.shape[-1]
    check_codes(mask, (n, k), 1)
    check_dtype("values", values.dtype)
    if starts.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"starts must be int32 or int64, got {starts.dtype}")
    if tuple(starts.shape) != (n, segments_of(k)):
        raise ValueError(f"starts must be {[n, segments_of(k)]} for {[n, k]}, got {list(starts.shape)}")
    weight = _weight(mask, starts.contiguous(), values.contiguous(), None, n, k, values.shape[1])
    return sparse_multiply(x, {**weight, "segments": starts.shape[1], "KIND": "bitmask"})


def _weight(
    indices: Tensor, starts: Tensor | None, values: Tensor, scale: Tensor | None, n: int, k: int, kept: int
) -> dict[str, Any]:
    """What the kernels are told of a weight [n, k]: of a 2:4 one without codes, unless it is changed."""
    return {
        "indices_ptr": indices,
        "starts_ptr": starts,
        "values_ptr": values,
        "scale_ptr": None if scale is None else scale.contiguous(),
        **{"n": n, "k": k, "kept": kept, "index_bytes": indices.shape[1]},
        **{"value_row": values.shape[1], "side_row": row_stride(scale), "segments": 0},
        **{"KIND": "two_of_four", "CODES": 0, "GROUP": 0, "PIECE": 8},
    }


def _check_values(values: Tensor, scale: Tensor | None, shape: tuple[int, int], group: Group) -> bool:
    """Whether `values` are codes of kept weights of `shape`. Raises TypeError or ValueError if they are neither."""
    coded = values.dtype == torch.uint8
    if coded != (scale is not None):
        raise ValueError(f"values that are codes (uint8), and no others, have scales; got {values.dtype} and {scale}")
    if not coded:
        check_dtype("values", values.dtype)
        if tuple(values.shape) != shape:
            raise ValueError(f"values must be {list(shape)}, got {list(values.shape)}")
        return False
    check_codes(values, shape, 4)
    check_side("scale", scale, shape, group)
    return True


def _piece(group: int) -> int:
    """Codes that are summed before their scale: those that a thread has side by side, if they are of one group."""
    return min(4, group & -group) if group else 4


OPERATIONS = (
    Op(
        name="two_of_four_matmul",
        formula="y = x @ w.T, w[i, 4 c + index[i, 2 c + j]] = values[i, 2 c + j]",
        source="Mishra et al. 2021, arXiv 2104.08378",
        reference=two_of_four_reference,
        triton=two_of_four_matmul,
        examples=two_of_four_examples,
        sized=two_of_four_sized,
        tolerance=MULTIPLIED,
    ),
    Op(
        name="bitmask_matmul",
        formula="y = x @ w.T, w[i, j] = values[kept before (i, j)] where mask[i, j]",
        source="Han et al. 2015, arXiv 1506.02626",
        reference=bitmask_reference,
        triton=bitmask_matmul,
        examples=bitmask_examples,
        sized=bitmask_sized,
        tolerance=MULTIPLIED,
    ),
)
