"""Where the kept weights of a bit mask begin: their number before every `SEGMENT` columns of a row.

A mask alone says where the value of a weight lies only by counting all bits before it; with these counts, 32 bits for
512 weights, a program can begin anywhere. They follow from the mask and are not stored with the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.packing import pack_fitting, packed_bytes

__all__ = ["SEGMENT", "mask_of_cells", "mask_starts", "segments_of"]

SEGMENT = 512  # columns of a row that share a count


def segments_of(k: int, segment: int = SEGMENT) -> int:
    """Counts that a row of `k` columns has."""
    return -(-k // segment)


def mask_starts(mask: Tensor, k: int, segment: int = SEGMENT) -> Tensor:
    """`mask` [n, packed_bytes(k, 1)] uint8 -> kept weights before each segment, [n, segments_of(k, segment)].

    `segment` is a multiple of 8; of a mask of blocks, 8 gives the kept ones before each of its bytes.

    int32, or int64 for a weight [n, k] of 2**31 values or more. Raises TypeError or ValueError for what is not a mask.
    """
    if mask.dtype != torch.uint8:
        raise TypeError(f"mask must be uint8, got {mask.dtype}")
    if mask.ndim != 2 or mask.shape[1] != packed_bytes(k, 1):
        raise ValueError(f"mask must be [n, {packed_bytes(k, 1)}] for {k} columns, got {list(mask.shape)}")
    n = mask.shape[0]
    bits = ((torch.arange(256, device=mask.device)[:, None] >> torch.arange(8, device=mask.device)) & 1).sum(1).int()
    segments = segments_of(k, segment)
    counts = torch.nn.functional.pad(bits[mask.int()], (0, segments * segment // 8 - mask.shape[1]))
    each = counts.view(n, segments, segment // 8).sum(2).flatten()
    starts = each.cumsum(0) - each
    return starts.view(n, -1).to(torch.int32 if n * k < 2**31 else torch.int64)


def mask_of_cells(places: Tensor, of: int, k: int) -> tuple[Tensor, Tensor]:
    """An n:m weight [rows, k] as a mask: `places` [rows, cells, n], ascending below `of`, -> the mask and its starts.

    The values are the stored ones, seen as one row: a short last cell of a row has values beyond `k`, which the starts
    of the next row pass over.
    """
    rows, cells, keep = places.shape
    have = torch.zeros(rows, cells, of, dtype=torch.uint8, device=places.device).scatter_(2, places.long(), 1)
    mask = have.flatten(1)[:, :k]
    first = torch.arange(rows, device=places.device)[:, None] * (cells * keep)
    short = segments_of(k) * SEGMENT - k
    each = torch.nn.functional.pad(mask, (0, short)).view(rows, -1, SEGMENT).sum(2)
    starts = first + each.cumsum(1) - each
    return pack_fitting(mask, 1), starts.to(torch.int32 if rows * cells * of < 2**31 else torch.int64)
