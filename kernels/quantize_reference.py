"""What quantizing a weight means, in torch, bit by bit: the definitions that the kernels of `kernels.quantize` keep to.

    largest = max |w| of the group            inverse(s) = 1 / s, or 0 unless s > 2**-126
    codebook     scale = largest              code = number of thresholds below w * inverse(largest)
    symmetric    scale = largest / (2**(bits-1) - 1)    code = round(w * inverse(scale)) + 2**(bits-1), at least 1
    integer      scale = (high - low) / (2**bits - 1), zero = round(-low * inverse(scale)),
                 code = round(w * inverse(scale)) + zero, where low <= 0 <= high span the group
    float        the same scale, zero = -low * inverse(scale) in float16, code = round(w * inverse(scale) + zero)
    mx           scale = 2**e, e = floor(log2(largest)) - 2, code = sign and nearest magnitude of w / scale in E2M1

All in float32, every operation rounded by itself, halves to even; codes of a uniform grid follow from the scale as it
is stored. A threshold is the float32 mid-point of two neighbouring levels, and belongs to the lower one. Magnitudes
below 2**-100 count as zero. Weights must be finite and at most 2**100; whether a narrow dtype suits the scales is for
the caller to say.
Sources: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314; Jacob et al. 2018, arXiv 1712.05877;
OCP Microscaling Formats (MX) specification v1.0.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from kernels.packing import pack_fitting

__all__ = [
    "KINDS",
    "affine_reference",
    "codebook_reference",
    "inverse_of",
    "mxfp4_reference",
    "nested_reference",
    "thresholds",
]

Group = int | str
KINDS = (None, "integer", "float")
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SMALLEST = 2.0**-100
TINY = 2.0**-126


def codebook_reference(
    weight: Tensor, levels: Tensor, *, bits: int, group: Group, stored: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The definition of `codebook_quantize`: packed codes [n, packed_bytes(k, bits)] and scales [n, groups]."""
    cells = _cells(weight, group)
    largest = cells.abs().amax(-1)
    x = cells * inverse_of(largest)[..., None]
    codes = torch.bucketize(x, thresholds(levels)).to(torch.uint8)
    return pack_fitting(_rows(codes, weight), bits), largest.to(stored)


def affine_reference(
    weight: Tensor, *, bits: int, group: Group, zero: str | None, stored: torch.dtype
) -> tuple[Tensor, ...]:
    """The definition of `affine_quantize`: packed codes, scales, and zeros where `zero` asks for them."""
    cells = _cells(weight, group)
    half, top = 1 << (bits - 1), (1 << bits) - 1
    low, high = cells.amin(-1).clamp(max=0), cells.amax(-1).clamp(min=0)
    if zero is None:
        step = _over(cells.abs().amax(-1), half - 1)
    else:
        step = _over(high - low, top)
    scale = step.to(stored)
    inverse = inverse_of(scale.float())
    x = cells * inverse[..., None]
    if zero is None:
        codes = x.round() + half
        sides: tuple[Tensor, ...] = ()
    elif zero == "integer":
        shift = (-low * inverse).round().clamp(0, top)
        codes = x.round() + shift[..., None]
        sides = (pack_fitting(shift.to(torch.uint8), bits),)
    else:
        sides = ((-low * inverse).to(torch.float16),)
        codes = (x + sides[0].float()[..., None]).round()
    codes = codes.clamp(1 if zero is None else 0, top).to(torch.uint8)
    return (pack_fitting(_rows(codes, weight), bits), scale, *sides)


def mxfp4_reference(weight: Tensor, *, group: Group) -> tuple[Tensor, Tensor]:
    """The definition of `mxfp4_quantize`; a group of zeros has the smallest scale."""
    cells = _cells(weight, group)
    largest = cells.abs().amax(-1)
    power = torch.where(largest > 0, torch.frexp(largest).exponent - 3, -127)
    inverse = ((127 - power) << 23).to(torch.int32).view(torch.float32)
    size = cells.abs() * inverse[..., None]
    codes = torch.zeros(size.shape, dtype=torch.uint8, device=size.device)
    for i, (low, high) in enumerate(pairwise(E2M1)):
        middle = (low + high) / 2
        codes += size > middle if i % 2 == 0 else size >= middle  # ties to the even code
    codes += ((cells < 0) & (codes > 0)).to(torch.uint8) << 3
    return pack_fitting(_rows(codes, weight), 4), (power + 127).to(torch.uint8)


def nested_reference(scale: Tensor, offset: Tensor, levels: Tensor, *, block: int) -> tuple[Tensor, Tensor]:
    """The definition of `nested_quantize`: codes uint8 like `scale`, and one maximum a block, [ceil(numel / block)].

    Blocks run over the flattened scales. A code is that of the nearest level, or the next one where the nearest would
    decode below zero, which no scale is.
    """
    rest = scale.float().flatten() - offset.float()
    cells = torch.nn.functional.pad(rest, (0, -rest.numel() % block)).view(-1, block)
    largest = cells.abs().amax(-1)
    spread = largest[:, None].expand(cells.shape).flatten()[: rest.numel()]
    codes = torch.bucketize(rest * inverse_of(spread), thresholds(levels))
    codes += levels.float()[codes] * spread + offset.float() < 0
    return codes.to(torch.uint8).view(scale.shape), largest


def thresholds(levels: Tensor) -> Tensor:
    """Mid-points between neighbouring ascending `levels` [L] -> [L - 1] float32."""
    wide = levels.float()
    return (wide[1:] + wide[:-1]) / 2


def inverse_of(scale: Tensor) -> Tensor:
    """1 / `scale`, 0 where the scale is not a positive normal number."""
    return torch.where(scale > TINY, 1 / scale, 0.0)


def _over(value: Tensor, divisor: int) -> Tensor:
    """`value` / `divisor`, rounded once: on a GPU torch would multiply by the reciprocal of a plain number."""
    return value / value.new_tensor(float(divisor))


def _cells(weight: Tensor, group: Group) -> Tensor:
    """[n, k] -> [rows, groups, size] float32, a short last group filled with zeros."""
    n, k = weight.shape
    w = weight.float()
    w = w.masked_fill(w.abs() < SMALLEST, 0.0)
    if group == "tensor":
        return w.reshape(1, 1, n * k)
    size = k if group == "channel" else int(group)
    return torch.nn.functional.pad(w, (0, -k % size)).reshape(n, -1, size)


def _rows(codes: Tensor, weight: Tensor) -> Tensor:
    """[rows, groups, size] -> [n, k]."""
    n, k = weight.shape
    return codes.reshape(n, -1)[:, :k]
