"""The definitions of the operations in `kernels.blocks`, in float32, or in float64 where that is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.nested import Scale
from kernels.packing import unpack
from kernels.sparse_reference import kept_values

__all__ = ["blocks_dequantize", "blocks_grad", "blocks_matmul"]

Group = int | str


def blocks_dequantize(
    mask: Tensor,
    starts: Tensor,
    values: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    *,
    shape: tuple[int, int],
    block: tuple[int, int],
    bits: int,
    group: Group,
    rows: int,
    dtype: torch.dtype,
) -> Tensor:
    """The definition of the operation of this name."""
    (n, k), (height, width), wide = shape, block, torch.promote_types(dtype, torch.float32)
    down, across = mask.shape[0], -(-k // width)
    kept = kept_values(values, levels, scale, zero, (len(values), height * width), bits, group, rows, wide)
    have = torch.nn.functional.pad(unpack(mask, 1, across).long(), (0, -across % 8)).view(down, -1, 8)
    at = torch.where(have > 0, starts.long()[:, :, None] + have.cumsum(2) - have, len(kept)).view(down, -1)[:, :across]
    cells = torch.cat([kept, kept.new_zeros(1, height * width)])[at].view(down, across, height, width)
    return cells.transpose(1, 2).reshape(down * height, across * width)[:n, :k].to(dtype).contiguous()


def blocks_matmul(
    x: Tensor,
    mask: Tensor,
    starts: Tensor,
    values: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    *,
    n: int,
    block: tuple[int, int],
    bits: int,
    group: Group,
    rows: int,
) -> Tensor:
    """The definition of the operation of this name."""
    wide, shape = torch.promote_types(x.dtype, torch.float32), (n, x.shape[-1])
    own = {"shape": shape, "block": block, "bits": bits, "group": group, "rows": rows}
    w = blocks_dequantize(mask, starts, values, levels, scale, zero, **own, dtype=wide)  # type: ignore[arg-type]
    return (x.to(wide) @ w.T).to(x.dtype)


def blocks_grad(
    dy: Tensor,
    mask: Tensor,
    starts: Tensor,
    values: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    *,
    k: int,
    block: tuple[int, int],
    bits: int,
    group: Group,
    rows: int,
) -> Tensor:
    """The definition of the operation of this name."""
    wide, shape = torch.promote_types(dy.dtype, torch.float32), (dy.shape[-1], k)
    own = {"shape": shape, "block": block, "bits": bits, "group": group, "rows": rows}
    w = blocks_dequantize(mask, starts, values, levels, scale, zero, **own, dtype=wide)  # type: ignore[arg-type]
    return (dy.to(wide) @ w).to(dy.dtype)
