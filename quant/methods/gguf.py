"""Block formats of GGUF files (llama.cpp) at 4.5 bits a weight: Q4_0, IQ4_NL and Q4_K.

Q4_0    32 weights, w = d * (code - 8), d = (the weight of largest magnitude) / -8, float16
IQ4_NL  32 weights, w = d * table[code], a fixed table of 16 whole numbers; d as in Q4_0, then by search
Q4_K    256 weights in 8 groups of 32, w = d * sc * code - dmin * m, with sc and m of 6 bits a group, d and dmin float16

The scales and minima of Q4_K's groups are found by the search of the library (make_qkx2): for 21 steps of the range
the codes, then the scale and the minimum (never above 0) of least sum v (w - (s code + min))**2, v = |w| + rms of the
group.
IQ4_NL is searched by `Searched`, for the plain squared error (the library weighs it by w**2).
Source: llama.cpp, ggml-quants.c; cross-checked against its Python package `gguf`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import FixedCodebook, Shifted, SignedAffine
from quant.grouping import decode_scale, expand, grouped, inverse_of, store_scale, ungrouped
from quant.methods.search import Searched
from quant.nearest import nearest_in_groups

__all__ = ["IQ4NL", "IQ4_NL_LEVELS", "Q4K", "Q40"]

BLOCK = 32
IQ4_NL_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
PIECE = 1 << 19  # weights searched at a time
SUPER = 8  # groups of 32 in a block of Q4_K


@dataclass(frozen=True)
class BlockFormat(Quantizer):
    """A format of fixed settings."""

    @property
    def family(self) -> str:
        return "uniform"


@dataclass(frozen=True)
class Q40(BlockFormat):
    """Codes are chosen against the scale before it is rounded to float16, and halves go up, as the library does."""

    source = "llama.cpp, GGUF Q4_0"
    idea = "blocks of 32 on an even grid that reaches further on the side of the largest weight"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        step = _signed_largest(weight) / -8
        codes = (weight * expand(inverse_of(step), (n, k), BLOCK) + 8.5).clamp_(0, 15).to(torch.uint8)
        scale = store_scale(step, "float16")
        return SignedAffine((n, k), torch.float32, pack(codes, 4), scale, None, 4, BLOCK)


@dataclass(frozen=True)
class IQ4NL(BlockFormat):
    """Without the search: the weight of largest magnitude of a block becomes -127 d."""

    source = "llama.cpp, GGUF IQ4_NL"
    idea = "blocks of 32 on a fixed table that is finer about zero"

    @property
    def family(self) -> str:
        return "non-uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        levels = torch.tensor(IQ4_NL_LEVELS, dtype=torch.float32, device=weight.device)
        scale = store_scale(_signed_largest(weight) / IQ4_NL_LEVELS[0], "float16")
        codes = nearest_in_groups(weight, inverse_of(decode_scale(scale)), levels, BLOCK)
        return FixedCodebook((n, k), torch.float32, pack(codes, 4), levels[None], scale, None, 4, BLOCK, 0)


def _signed_largest(weight: Tensor) -> Tensor:
    """The weight of largest magnitude of each block, the first of equals, [n, blocks]."""
    cells = grouped(weight, BLOCK)
    return cells.gather(-1, cells.abs().argmax(-1, keepdim=True))[..., 0]


@dataclass(frozen=True)
class Q4K(BlockFormat):
    """A row whose length is no multiple of 256 ends in a shorter block."""

    source = "llama.cpp, GGUF Q4_K"
    idea = "groups of 32 with a scale and a minimum of 6 bits each, searched by weighted least squares"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        cells = grouped(weight, BLOCK)
        found = [make_qkx2(part) for part in torch.split(cells.flatten(0, 1), PIECE // BLOCK)]
        shape = (n, cells.shape[1])
        scale, minimum = (_six_bits(torch.cat(side).view(shape)) for side in zip(*found, strict=True))
        step, low = decode_scale(scale)[..., None], decode_scale(minimum)[..., None]
        codes = ((cells + low) * inverse_of(step)).round_().clamp_(0, 15).to(torch.uint8)
        inner = FixedCodebook(
            (n, k), torch.float32, pack(ungrouped(codes, (n, k)).contiguous(), 4), _whole(16, weight), scale, None, 4,
            BLOCK, 0,
        )  # fmt: skip
        return Shifted((n, k), torch.float32, inner, minimum, BLOCK)


def _whole(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.float32, device=like.device)[None]


def _six_bits(side: Tensor) -> FixedCodebook:
    """`side` [n, groups], non-negative, as 0..63 times a float16 for every 8 groups."""
    n, groups = side.shape
    largest = grouped(side, SUPER).amax(-1)
    codes = (side * expand(63 * inverse_of(largest), (n, groups), SUPER)).round_().clamp_(0, 63).to(torch.uint8)
    scale = store_scale(largest / 63, "float16")
    return FixedCodebook((n, groups), torch.float32, pack(codes, 6), _whole(64, side), scale, None, 6, SUPER, 0)


def make_qkx2(x: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the minimum's magnitude [b] of each group of `x` [b, 32]: x ~ scale * code - minimum."""
    v = x.abs() + x.square().mean(-1, keepdim=True).sqrt()
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True)
    reach = high - low
    sum_v, sum_x = v.sum(-1, keepdim=True), (v * x).sum(-1, keepdim=True)
    scale, minimum = reach / 15, low.clone()
    above = x - low
    per = inverse_of(reach)

    def fitted(factor: float) -> Tensor:
        return (above * (factor * per)).round_().clamp_(0, 15)

    def left(code: Tensor, s: Tensor, m: Tensor) -> Tensor:
        return ((code * s + m - x).square_() * v).sum(-1, keepdim=True)

    least = left(fitted(15.0), scale, minimum)
    for i in range(21):
        code = fitted(14.0 + 0.1 * i)
        vc = v * code
        sum_l, sum_l2, sum_xl = (
            vc.sum(-1, keepdim=True),
            (vc * code).sum(-1, keepdim=True),
            (vc * x).sum(-1, keepdim=True),
        )
        det = sum_v * sum_l2 - sum_l * sum_l
        s = (sum_v * sum_xl - sum_x * sum_l) / det
        m = (sum_l2 * sum_x - sum_l * sum_xl) / det
        s, m = torch.where(m > 0, sum_xl / sum_l2, s), m.clamp(max=0)
        error = left(code, s, m)
        better = (det > 0) & (error < least)
        scale, minimum, least = (
            torch.where(better, new, old) for new, old in ((s, scale), (m, minimum), (error, least))
        )
    return scale[:, 0], -minimum[:, 0]


register("gguf-q4-0", Q40())
register("gguf-q4-k", Q4K())
register("gguf-iq4-nl", Searched(IQ4NL()))
