"""HQQ: half-quadratic quantization. The scale is that of the range; the zero points are optimised without data.

    minimise |w - wr|_p^p,  wr = (q - z) s,  q = clamp(round(w / s + z)),   by half-quadratic splitting, for each group
    e = shrink(w - wr, beta),  shrink(x) = sign(x) max(|x| - |x|**(p - 1) / beta, 0)
    z = mean(q - (w - e) / s),  beta = kappa * beta                                               20 times

The scale is (max - min) / (2**bits - 1) over the range that includes 0, the zero point a float, stored in float16.
Where the original stops when mean |w - wr| of the whole tensor rises, here each group keeps the zero point of its
rounds that left the least squared error, so that none is worse than round to nearest.
The threshold |x|**(p - 1) / beta is in units of the weight: for weights as small as a model's all errors lie below it,
e is 0, and the optimum is that of least squares.
Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", Mobius Labs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import Affine
from quant.grouping import Group, check_group, check_scale, decode_scale, expand, grouped, inverse_of, packed_by_rows
from quant.methods.uniform import Uniform
from quant.rows import row_blocks

__all__ = ["HQQ"]


@dataclass(frozen=True)
class HQQ(Quantizer):
    """`bits` 2..8; `group` an int or "channel"; `scale` a dtype name or a quantizer for the scales."""

    bits: int = 4
    group: Group = 64
    scale: str | Quantizer = "float16"
    p: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    rounds: int = 20

    source = "Badri and Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models (Mobius Labs)"
    idea = "round to nearest about zero points that are optimised without data"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be 2..8, got {self.bits}")
        check_group(self.group)
        check_scale(self.scale)
        if self.group == "tensor":
            raise ValueError(
                "group must be an integer or 'channel': one zero point for the tensor is not worth a search"
            )
        if not 0 < self.p <= 1 or self.beta <= 0 or self.kappa < 1 or self.rounds < 0:
            raise ValueError(
                f"need 0 < p <= 1, beta > 0, kappa >= 1, rounds >= 0, got {self.p}, {self.beta}, {self.kappa}, "
                f"{self.rounds}"
            )

    @property
    def family(self) -> str:
        return "double quantization" if isinstance(self.scale, Quantizer) else "uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        start = Uniform(self.bits, self.group, "float", self.scale).quantize(weight)
        assert isinstance(start, Affine)
        assert isinstance(start.zero, Tensor)
        scale = decode_scale(start.scale)
        cells, real = grouped(weight, self.group), grouped(weight.new_ones(1, k), self.group)
        zero = torch.empty_like(start.zero)
        blocks = row_blocks(weight)
        room = weight.new_empty(5, *cells[blocks[0]].shape)
        for rows in blocks:
            w = cells[rows]
            zero[rows] = self._zeros(w, real, scale[rows, :, None], start.zero[rows], room[:, : len(w)])
        inverse, shift = inverse_of(scale), zero.float()

        def codes_of(rows: slice) -> Tensor:
            part = weight[rows]
            codes = part * expand(inverse[rows], (len(part), k), self.group)
            codes += expand(shift[rows], (len(part), k), self.group)
            return codes.round_().clamp_(0, (1 << self.bits) - 1).to(torch.uint8)

        packed = packed_by_rows(weight, self.bits, codes_of)
        return Affine((n, k), torch.float32, packed, start.scale, zero, self.bits, self.group)

    def _zeros(self, w: Tensor, real: Tensor, scale: Tensor, start: Tensor, room: Tensor) -> Tensor:
        """The best zero points [r, groups] float16 of `w` [r, groups, size]; `real` is 0 where a group is filled up.

        `room` [5, r, groups, size] is written over in every round: arrays that came and went would cost page faults.
        """
        inverse = inverse_of(scale)
        scaled, q, error, away, shrunk = room
        torch.mul(w, inverse, out=scaled)
        size = real.sum(-1)
        best = zero = start
        least = torch.full_like(scale[..., 0], torch.inf)
        beta = self.beta
        for _ in range(self.rounds + 1):
            z = zero.float()[..., None]
            torch.add(scaled, z, out=q).round_().clamp_(0, (1 << self.bits) - 1)
            torch.sub(q, z, out=error).mul_(scale)
            torch.sub(w, error, out=error).mul_(real)
            sum_of_squares = torch.mul(error, error, out=shrunk).sum(-1)
            less = sum_of_squares < least
            best, least = torch.where(less, zero, best), torch.where(less, sum_of_squares, least)
            torch.abs(error, out=away)
            torch.pow(away, self.p - 1, out=shrunk).div_(beta)
            torch.sub(away, shrunk, out=shrunk).clamp_(min=0)
            torch.copysign(shrunk, error, out=shrunk)
            torch.sub(q, scaled, out=q).addcmul_(shrunk, inverse).mul_(real)
            zero = (q.sum(-1) / size).to(torch.float16)
            beta *= self.kappa
        return best


register("hqq-int4-g64", HQQ(4, 64))
register("hqq-int3-g64", HQQ(3, 64))
register("hqq-int2-g64", HQQ(2, 64))
