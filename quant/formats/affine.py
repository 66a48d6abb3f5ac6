"""Uniform grids: w = (code - zero) * scale.

`Integers` are packed codes without a scale (the zero points of an affine weight); `Affine` is the weight itself, and
`SignedAffine` one whose scales carry a sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packing import pack, packed_bytes, unpack
from quant.core import QuantizedTensor
from quant.grouping import Group, check_group, decode_scale, expand, group_shape

__all__ = ["Affine", "Integers", "SignedAffine"]


def check_codes(codes: Tensor, shape: tuple[int, int], bits: int) -> None:
    """Raise ValueError unless `codes` is uint8 [n, packed_bytes(k, bits)]."""
    want = (shape[0], packed_bytes(shape[1], bits))
    if codes.dtype != torch.uint8 or tuple(codes.shape) != want:
        raise ValueError(f"codes must be uint8 {want}, got {codes.dtype} {tuple(codes.shape)}")


def check_side(name: str, value: Tensor | QuantizedTensor, want: tuple[int, int]) -> None:
    """Raise ValueError unless scales or zeros have the shape `want` and, stored plainly, a floating dtype."""
    if tuple(value.shape) != want:
        raise ValueError(f"{name} must have shape {want}, got {tuple(value.shape)}")
    if isinstance(value, Tensor) and not value.dtype.is_floating_point:
        raise ValueError(f"{name} must be floating, got {value.dtype}")


@dataclass(frozen=True, eq=False)
class Integers(QuantizedTensor, format="integers"):
    """Whole numbers 0 .. 2**bits - 1, packed; decodes to themselves."""

    codes: Tensor
    bits: int

    stored_parts = {"codes": "codes"}

    def __post_init__(self) -> None:
        check_codes(self.codes, self.shape, self.bits)

    @classmethod
    def store(cls, values: Tensor, bits: int) -> Integers:
        """Pack `values` [n, k], whole numbers of any dtype."""
        return cls((values.shape[0], values.shape[1]), torch.float32, pack(values.to(torch.uint8), bits), bits)

    def decode(self) -> Tensor:
        return unpack(self.codes, self.bits, self.shape[1]).float()


@dataclass(frozen=True, eq=False)
class Affine(QuantizedTensor, format="affine"):
    """`codes` [n, packed_bytes(k, bits)] uint8; `scale` and `zero` as in `quant.grouping`, zero in units of codes.

    Without `zero` the grid is symmetric: the zero is 2**(bits - 1).
    """

    codes: Tensor
    scale: Tensor | QuantizedTensor
    zero: Tensor | QuantizedTensor | None
    bits: int
    group: Group

    stored_parts = {"codes": "codes", "scale": "scales", "zero": "zeros"}

    def __post_init__(self) -> None:
        check_group(self.group)
        check_codes(self.codes, self.shape, self.bits)
        check_side("scale", self.scale, group_shape(self.shape, self.group))
        if self.zero is not None:
            check_side("zero", self.zero, group_shape(self.shape, self.group))

    @property
    def bottom(self) -> int:
        """The lowest code in use: without a zero point not the most negative one, see `SignedAffine`."""
        return 1 if self.zero is None else 0

    def unpacked(self) -> Tensor:
        """Codes [n, k] uint8."""
        return unpack(self.codes, self.bits, self.shape[1])

    def decode(self) -> Tensor:
        codes = self.unpacked().float()
        if self.zero is None:
            codes -= 1 << (self.bits - 1)
        else:
            codes -= expand(decode_scale(self.zero), self.shape, self.group)
        return codes.mul_(expand(decode_scale(self.scale), self.shape, self.group))


@dataclass(frozen=True, eq=False)
class SignedAffine(Affine, format="signed-affine"):
    """All codes about the middle one are in use, and the scale may be negative: the side that reaches further is free.

    The largest magnitude of a group then is the lowest code, -2**(bits - 1) steps, whatever its sign.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero is not None:
            raise ValueError("a signed affine weight has no zero point: its zero is the middle code")

    @property
    def bottom(self) -> int:
        return 0
