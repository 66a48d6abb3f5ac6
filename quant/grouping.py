"""How a weight [n, k] is cut into groups that share a scale, and how that scale is stored.

A group is `group` consecutive weights of one row (the last group of a row may be shorter), "channel" (one group a row)
or "tensor" (one group in all). Scales and zeros have shape [n, ceil(k / group)], [n, 1] and [1, 1] respectively.
Scales are stored in a dtype, in a format that enters itself in `SCALE_FORMATS` ("e4m3", "e8m0"), or by a quantizer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.packing import pack, packed_bytes
from quant.core import QuantizedTensor, Quantizer
from quant.rows import row_blocks

__all__ = [
    "SCALE_FORMATS",
    "Group",
    "check_group",
    "check_scale",
    "decode_scale",
    "expand",
    "group_shape",
    "grouped",
    "inverse_of",
    "largest_of",
    "of_rows",
    "packed_by_rows",
    "store_scale",
    "ungrouped",
]

Group = int | str
SCALE_DTYPES = ("float32", "float16", "bfloat16")
SCALE_FORMATS: dict[str, Callable[[Tensor], QuantizedTensor]] = {}


def check_group(group: Group) -> None:
    """Raise ValueError unless `group` is a positive int, "channel" or "tensor"."""
    positive = isinstance(group, int) and not isinstance(group, bool) and group > 0
    if not positive and group not in ("channel", "tensor"):
        raise ValueError(f"group must be a positive integer, 'channel' or 'tensor', got {group!r}")


def check_scale(scale: str | Quantizer) -> None:
    """Raise ValueError unless `scale` names a dtype or format that scales are stored in, or is a quantizer for them."""
    known = (*SCALE_DTYPES, *SCALE_FORMATS)
    if not isinstance(scale, Quantizer) and scale not in known:
        raise ValueError(f"scale must be one of {', '.join(known)} or a Quantizer, got {scale!r}")


def group_shape(shape: tuple[int, int], group: Group) -> tuple[int, int]:
    """Shape of the scales of a weight [n, k].

    >>> group_shape((4, 100), 64), group_shape((4, 100), "channel"), group_shape((4, 100), "tensor")
    ((4, 2), (4, 1), (1, 1))
    """
    n, k = shape
    if group == "tensor":
        return 1, 1
    return (n, 1) if group == "channel" else (n, -(-k // int(group)))


def grouped(w: Tensor, group: Group) -> Tensor:
    """[n, k] -> [rows, groups, size], a short last group filled with zeros. A view where nothing is filled in."""
    n, k = w.shape
    if group == "tensor":
        return w.reshape(1, 1, n * k)
    if group == "channel":
        return w.reshape(n, 1, k)
    size = int(group)
    short = -k % size
    return (torch.nn.functional.pad(w, (0, short)) if short else w).reshape(n, -1, size)


def ungrouped(t: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of `grouped`: [rows, groups, size] -> [n, k], the filled-in zeros dropped."""
    n, k = shape
    return t.reshape(n, -1)[:, :k]


def expand(scale: Tensor, shape: tuple[int, int], group: Group) -> Tensor:
    """Scales [rows, groups] -> one value a weight, broadcastable to [n, k]."""
    if not isinstance(group, int):
        return scale
    return scale.repeat_interleave(group, dim=1)[:, : shape[1]]


def of_rows(scale: Tensor, rows: slice, group: Group) -> Tensor:
    """What [rows, groups] holds for some rows of the weight: all of it where the tensor is one group."""
    return scale if group == "tensor" else scale[rows]


def store_scale(scale: Tensor, how: str | Quantizer) -> Tensor | QuantizedTensor:
    """`scale` [rows, groups] float32 in the form in which it is stored.

    A dtype that would move a scale that matters (within 2**-12 of the largest) by more than 1 part in 128, by
    overflow or by underflow, is replaced by float32 for this tensor, and the bytes say so. Quantizers may be nested.
    The formats of `SCALE_FORMATS` are coarser than that by design: choose codes against what they store.
    """
    if isinstance(how, Quantizer):
        return how.quantize(scale)
    if how in SCALE_FORMATS:
        return SCALE_FORMATS[how](scale)
    stored = scale.to(getattr(torch, how))
    size = scale.abs()
    matters = size > size.max() * 2.0**-12
    moved = (stored.float() - scale).abs() > size / 128
    return scale.contiguous() if bool((matters & moved).any()) else stored


def decode_scale(scale: Tensor | QuantizedTensor) -> Tensor:
    """Stored scales as float32 [rows, groups]."""
    return scale.decode() if isinstance(scale, QuantizedTensor) else scale.float()


def inverse_of(scale: Tensor) -> Tensor:
    """1 / `scale`, which may be negative; 0 where the reciprocal would overflow, as for a group of zeros."""
    return torch.where(scale.abs() > torch.finfo(torch.float32).tiny, 1 / scale, 0.0)


def largest_of(cells: Tensor) -> Tensor:
    """Largest magnitude over the last dimension of `cells`, without an array of their size."""
    return torch.maximum(cells.amax(-1), -cells.amin(-1)).abs()


def packed_by_rows(weight: Tensor, bits: int, codes_of: Callable[[slice], Tensor]) -> Tensor:
    """Packed codes of `weight` [n, k], where `codes_of(rows)` gives those of some rows, [rows, k] uint8.

    Taken by `row_blocks`, so that no array of the size of the weight comes and goes on a CPU.
    """
    n, k = weight.shape
    packed = torch.empty(n, packed_bytes(k, bits), dtype=torch.uint8, device=weight.device)
    for rows in row_blocks(weight):
        packed[rows] = pack(codes_of(rows), bits)
    return packed
