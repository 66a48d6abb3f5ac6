"""The definitions of the operations in `kernels.sparse_formats`, in float32, or in float64 where that is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import affine, codebook
from kernels.nested import Scale
from kernels.packing import unpack
from kernels.sparse_starts import SEGMENT

__all__ = ["bitmask_coded_matmul", "bitmask_dequantize", "kept_values", "n_of_m_dequantize", "n_of_m_matmul"]

Group = int | str


def n_of_m_dequantize(
    indices: Tensor,
    values: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    *,
    shape: tuple[int, int],
    of: int,
    bits: int,
    group: Group,
    rows: int,
    dtype: torch.dtype,
) -> Tensor:
    """The definition of the operation of this name."""
    (n, k), wide = shape, torch.promote_types(dtype, torch.float32)
    cells, keep = -(-k // of), of // 2
    kept = kept_values(values, levels, scale, zero, (n, cells * keep), bits, group, rows, wide)
    places = unpack(indices, (of - 1).bit_length(), cells * keep).long()
    at = places + torch.arange(cells * keep, device=places.device) // keep * of
    return kept.new_zeros(n, cells * of).scatter(1, at, kept)[:, :k].to(dtype).contiguous()


def n_of_m_matmul(
    x: Tensor,
    indices: Tensor,
    values: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    *,
    of: int,
    bits: int,
    group: Group,
    rows: int,
) -> Tensor:
    """The definition of the operation of this name."""
    wide = torch.promote_types(x.dtype, torch.float32)
    shape = (indices.shape[0], x.shape[-1])
    w = n_of_m_dequantize(
        indices, values, levels, scale, zero, shape=shape, of=of, bits=bits, group=group, rows=rows, dtype=wide
    )
    return (x.to(wide) @ w.T).to(x.dtype)


def bitmask_dequantize(
    mask: Tensor,
    starts: Tensor,
    values: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    *,
    shape: tuple[int, int],
    kept: int,
    bits: int,
    group: Group,
    dtype: torch.dtype,
) -> Tensor:
    """The definition of the operation of this name."""
    (n, k), wide = shape, torch.promote_types(dtype, torch.float32)
    w = kept_values(values, levels, scale, zero, (1, kept), bits, group, 0, wide)[0]
    with_zero = torch.cat([w, w.new_zeros(1)])
    have = torch.nn.functional.pad(unpack(mask, 1, k).long(), (0, -k % SEGMENT)).view(n, -1, SEGMENT)
    at = starts.long()[:, :, None] + have.cumsum(2) - have
    return with_zero[torch.where(have > 0, at, kept)].view(n, -1)[:, :k].to(dtype).contiguous()


def bitmask_coded_matmul(
    x: Tensor,
    mask: Tensor,
    starts: Tensor,
    codes: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    *,
    kept: int,
    bits: int,
    group: Group,
) -> Tensor:
    """The definition of the operation of this name."""
    wide = torch.promote_types(x.dtype, torch.float32)
    shape = (mask.shape[0], x.shape[-1])
    w = bitmask_dequantize(
        mask, starts, codes, levels, scale, zero, shape=shape, kept=kept, bits=bits, group=group, dtype=wide
    )
    return (x.to(wide) @ w.T).to(x.dtype)


def kept_values(
    values: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    shape: tuple[int, int],
    bits: int,
    group: Group,
    rows: int,
    dtype: torch.dtype,
) -> Tensor:
    """Kept weights of `shape`, floating or packed codes of either kind."""
    if values.dtype != torch.uint8:
        return values.to(dtype)
    if levels is not None:
        return codebook.dequantize_reference(
            values, levels, scale, shape=shape, bits=bits, group=group, rows=rows, dtype=dtype
        )
    assert scale is not None
    return affine.dequantize_reference(values, scale, zero, shape=shape, bits=bits, group=group, dtype=dtype)
