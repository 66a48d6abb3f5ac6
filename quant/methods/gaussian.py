"""Codes that are optimal for normal weights under the root mean square of their group, one weight or two at a time.

LloydMax  w ~ level * s, s = |group|_2 / sqrt(its size): the 2**b levels of least squared error for N(0, 1). Unlike the
          absmax of a block, s is not moved by one large weight; unlike a learned table it costs no storage
Pairs     16 points for two weights at once, 2 bits a weight: the plane is covered better than by 4 x 4 levels, squared
          error .1076 against .1175. The best of 150 runs of Lloyd's algorithm, three-fold symmetric: one point at 0,
          three each at three radii, six at a fourth; the five numbers were then iterated to a fixed point by quadrature

Sources: Max 1960, IRE Trans. Inf. Theory 6(1); Lloyd 1982, IEEE Trans. Inf. Theory 28(2); grids of pairs: Malinovskii
et al. 2024 (HIGGS), arXiv 2411.17525, after Pages and Printems 2003, Monte Carlo Methods Appl. 9(2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer
from quant.formats import FixedCodebook, Vectors
from quant.grouping import (
    Group,
    check_group,
    check_scale,
    decode_scale,
    expand,
    grouped,
    inverse_of,
    largest_of,
    store_scale,
)
from quant.lloyd_max import gaussian_levels
from quant.nearest import nearest_in_groups

__all__ = ["LloydMax", "Pairs", "pair_levels", "root_mean_square"]

NEAR, MIDDLE, FAR, BETWEEN = 0.891504, 0.956321, 2.002989, 1.866331  # radii; on axes, on opposite axes twice, beside
ANGLE = 0.685506  # of the six between, to either side of the axes of MIDDLE and FAR
PIECE = 1 << 16  # pairs whose distances to all points are held at a time


def root_mean_square(weight: Tensor, group: Group) -> Tensor:
    """|group|_2 / sqrt(size) [rows, groups] of `weight` [n, k]; a short last group is divided by its own size."""
    cells = grouped(weight, group)
    size = torch.full((cells.shape[1],), float(cells.shape[2]), device=weight.device)
    size[-1] -= cells[0].numel() - weight.numel() // len(cells)
    top = largest_of(cells)  # squares of the largest weights that are accepted overflow
    unit = cells * inverse_of(top)[..., None]
    return top * (unit.square().sum(-1) / size).sqrt()


@dataclass(frozen=True)
class _Gaussian(Quantizer):
    """`group` and `scale` as in grouping; codes are chosen against the scale as it is stored."""

    group: Group = 128
    scale: str | Quantizer = "float16"

    def __post_init__(self) -> None:
        check_group(self.group)
        check_scale(self.scale)

    @property
    def family(self) -> str:
        return "double quantization" if isinstance(self.scale, Quantizer) else "non-uniform"


@dataclass(frozen=True)
class LloydMax(_Gaussian):
    """`bits` 1..8."""

    bits: int = 4

    source = "Max 1960, IRE Trans. Inf. Theory 6(1); Lloyd 1982, IEEE Trans. Inf. Theory 28(2)"
    idea = "the levels of least squared error for normal weights"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be 1..8, got {self.bits}")

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        levels = torch.tensor(gaussian_levels(self.bits), dtype=torch.float32, device=weight.device)
        scale = store_scale(root_mean_square(weight, self.group), self.scale)
        codes = nearest_in_groups(weight, inverse_of(decode_scale(scale)), levels, self.group)
        packed = pack(codes, self.bits)
        return FixedCodebook((n, k), torch.float32, packed, levels[None], scale, None, self.bits, self.group, 0)


@dataclass(frozen=True)
class Pairs(_Gaussian):
    """Two weights a 4-bit code."""

    source = "Malinovskii et al. 2024 (HIGGS), arXiv 2411.17525"
    idea = "the 16 points of the plane of least squared error for pairs of normal weights"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        levels = pair_levels().to(weight.device)
        scale = store_scale(root_mean_square(weight, self.group), self.scale)
        unit = weight * expand(inverse_of(decode_scale(scale)), (n, k), self.group)
        pairs = torch.nn.functional.pad(unit, (0, k % 2)).view(-1, 2)
        half = levels.square().sum(1) / 2
        codes = [(p @ levels.T - half).argmax(1) for p in torch.split(pairs, PIECE)]  # type: ignore[no-untyped-call, unused-ignore]
        packed = pack(torch.cat(codes).to(torch.uint8).view(n, -1), 4)
        return Vectors((n, k), torch.float32, packed, levels, scale, 4, self.group)


def pair_levels() -> Tensor:
    """The 16 points, [16, 2] float32; the first is 0."""
    turn = torch.arange(3, dtype=torch.float64) * (2 * torch.pi / 3)
    angle = torch.cat([turn + torch.pi / 3, turn, turn, turn + ANGLE, turn - ANGLE])
    radius = torch.tensor([NEAR, MIDDLE, FAR, BETWEEN, BETWEEN], dtype=torch.float64).repeat_interleave(3)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return torch.cat([torch.zeros(1, 2, dtype=torch.float64), points]).float()
