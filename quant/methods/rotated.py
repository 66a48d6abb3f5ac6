"""A random Hadamard rotation around any method: the rotated weights are close to normal whatever they were before.

W' = W D H, D random signs of the columns and H the Walsh-Hadamard transform of groups of g consecutive columns, g the
largest power of two up to `size` that divides k (k = 576 = 9 * 64 has groups of 64). Each rotated weight is a sum of g
weights with random signs, so a large one is spread over its group and the sum tends to the normal distribution. The
inner method quantizes W'; x is transformed alike when the weight is multiplied with (`quant.formats.Rotated`).
Sources: Chee et al. 2023 (QuIP), arXiv 2307.13304; Ashkboos et al. 2024 (QuaRot), arXiv 2404.00456.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer, UnsupportedError, register
from quant.formats import Rotated
from quant.hadamard import group_of, transformed
from quant.methods.double import DynamicMap
from quant.methods.nf4 import NF

__all__ = ["Hadamard"]

SMALLEST = 8  # columns in a group; fewer spread nothing


@dataclass(frozen=True)
class Hadamard(Quantizer):
    """`inner` quantizes the weight rotated in groups of up to `size`, a power of two, with signs drawn from `seed`.

    Of a calibration the second moment is rotated too; a method that needs magnitudes or Fisher information cannot be
    `inner`, for those of the rotated inputs do not follow from them. UnsupportedError where k is not a multiple of 8.
    """

    inner: Quantizer = field(default_factory=lambda: NF(scale=DynamicMap()))
    size: int = 1024
    seed: int = 0

    source = "Ashkboos et al. 2024 (QuaRot), arXiv 2404.00456"
    idea = "a random Hadamard rotation spreads large weights before any method quantizes them"

    def __post_init__(self) -> None:
        if self.size < SMALLEST or self.size & (self.size - 1):
            raise ValueError(f"size must be a power of two of at least {SMALLEST}, got {self.size}")
        if lost := self.inner.needs - {"second_moment"}:
            raise ValueError(
                f"the {', '.join(sorted(lost))} of rotated inputs are not known: rotate no method so needy"
            )

    @property
    def family(self) -> str:
        return self.inner.family

    def rotation(self, k: int) -> tuple[Tensor, int]:
        """The signs -1 and 1 of the columns, [1, k] float32, and the size of the groups."""
        group = group_of(k, self.size)
        if group < SMALLEST:
            raise UnsupportedError(f"{k} columns have no groups of {SMALLEST} or more to rotate: {k} = {group} * odd")
        signs = torch.randint(0, 2, (1, k), generator=torch.Generator().manual_seed(self.seed))
        return 1.0 - 2.0 * signs, group

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        signs, group = self.rotation(k)
        signs = signs.to(weight.device)
        known = calibration
        if calibration is not None and calibration.second_moment is not None:
            moment = calibration.second_moment * signs.to(calibration.second_moment.device)
            moment = transformed(moment, group).T * signs.to(moment.device)
            known = dataclasses.replace(calibration, second_moment=transformed(moment, group).contiguous())
        inner = self.inner.quantize(transformed(weight * signs, group), known)
        return Rotated((n, k), torch.float32, inner, pack((signs < 0).to(torch.uint8), 1), group)


register("hadamard-nf4-g64-dq", Hadamard())
