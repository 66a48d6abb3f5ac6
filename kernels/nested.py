"""Scales that are themselves quantized: how a kernel reads them in the 8 bits in which they are stored.

    scale[i] = levels[codes[i]] * scale2[i // group] + offset          i = row * groups + g, over all rows

This is QLoRA's double quantization (a table of 256 levels, blocks of 256 scales, their mean as offset); any table of
256 levels is the same arithmetic, a uniform grid being the table 0, 1, 2, ... less its zero.
Source: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.checks import check_dtype

__all__ = ["NestedScale", "Scale", "scale_arguments", "scale_values"]


@dataclass(frozen=True, eq=False)
class NestedScale:
    """`codes` uint8 of any shape, one a scale in the order of rows; `levels` [256], `scale` [ceil(numel / group)],
    `offset` [1] or None, all floating; `group` consecutive codes share an entry of `scale`.
    """

    codes: Tensor
    levels: Tensor
    scale: Tensor
    offset: Tensor | None
    group: int

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.uint8:
            raise TypeError(f"codes of nested scales must be uint8, got {self.codes.dtype}")
        if not self.codes.is_contiguous():
            raise ValueError("codes of nested scales must be contiguous: pass codes.contiguous()")
        if self.group <= 0:
            raise ValueError(f"group of nested scales must be positive, got {self.group}")
        if self.levels.numel() != 256:
            raise ValueError(f"nested scales have 256 levels, got {self.levels.numel()}: fill the table up with zeros")
        blocks = -(-self.codes.numel() // self.group)
        if self.scale.numel() != blocks:
            raise ValueError(
                f"{self.codes.numel()} codes in groups of {self.group} need {blocks} scales, got {self.scale.numel()}"
            )
        if self.offset is not None and self.offset.numel() != 1:
            raise ValueError(f"the offset of nested scales is one value, got {list(self.offset.shape)}")
        for name in ("levels", "scale", "offset"):
            value: Tensor | None = getattr(self, name)
            if value is not None:
                check_dtype(f"{name} of nested scales", value.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors."""
        stored = (self.codes, self.levels, self.scale, self.offset)
        return sum(t.numel() * t.element_size() for t in stored if t is not None)

    def to(self, where: torch.device | str) -> NestedScale:
        """The same scales on another device."""
        offset = None if self.offset is None else self.offset.to(where)
        return NestedScale(self.codes.to(where), self.levels.to(where), self.scale.to(where), offset, self.group)

    def map(self, change: Callable[[Tensor], Tensor]) -> NestedScale:
        """The same scales with `change` applied to each stored tensor."""
        offset = None if self.offset is None else change(self.offset)
        return NestedScale(change(self.codes), change(self.levels), change(self.scale), offset, self.group)

    def values(self, dtype: torch.dtype) -> Tensor:
        """The scales in the shape of the codes, computed in `dtype`."""
        flat = self.codes.flatten().long()
        block = torch.arange(flat.numel(), device=flat.device) // self.group
        value = self.levels.flatten().to(dtype)[flat] * self.scale.flatten().to(dtype)[block]
        if self.offset is not None:
            value = value + self.offset.to(dtype).flatten()
        return value.view(self.codes.shape)


Scale = Tensor | NestedScale


def scale_values(scale: Scale, dtype: torch.dtype) -> Tensor:
    """Scales [rows, groups] in `dtype`, however they are stored."""
    return scale.values(dtype) if isinstance(scale, NestedScale) else scale.to(dtype)


def scale_arguments(scale: Scale | None) -> dict[str, Any]:
    """The arguments of a kernel that belong to the scales; NEST is 0 for scales that are stored as they are."""
    if not isinstance(scale, NestedScale):
        plain = None if scale is None else scale.contiguous()
        return {"scale_ptr": plain, "nest_levels_ptr": None, "nest_scale_ptr": None, "nest_offset_ptr": None, "NEST": 0}
    return {
        "scale_ptr": scale.codes,
        "nest_levels_ptr": scale.levels.contiguous(),
        "nest_scale_ptr": scale.scale.contiguous(),
        "nest_offset_ptr": scale.offset,
        "NEST": scale.group,
    }
