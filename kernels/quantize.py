"""Weights to packed codes, scales and zeros in one pass, equal to `kernels.quantize_reference` bit by bit.

A group of up to 4096 weights that ends on a whole byte is read once: its scale, codes and packing are made in
registers. Longer groups, long rows, the whole tensor, and groups that end inside a byte are read twice: once for their
extremes, once for their codes. Scales that are powers of two (E8M0) follow from the exponent of the largest magnitude,
so codes are chosen under the stored scale in the same pass. Where the scales of the whole tensor decide how each is
stored (E4M3 under a scale of the tensor, as in NVFP4), they must be known before the first code is: two passes, which
nothing here fuses. Sources: see `kernels.quantize_reference`.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kernels.checks import check_dtype
from kernels.op import EXACT, Op
from kernels.packing import packed_bytes
from kernels.quantize_examples import (
    affine_examples,
    affine_sized,
    codebook_examples,
    codebook_sized,
    mxfp4_examples,
    mxfp4_sized,
)
from kernels.quantize_kernels import ENCODE, EXTREMES, QUANTIZE, SIDES
from kernels.quantize_reference import KINDS, affine_reference, codebook_reference, mxfp4_reference
from kernels.tuning import Launch

__all__ = ["OPERATIONS", "affine_quantize", "codebook_quantize", "mxfp4_quantize"]

Group = int | str
LONGEST = 4096  # weights of a group that a program holds at once
TILE = 4096  # weights a program
TILE_INTERPRETED = 1 << 16


def codebook_quantize(
    weight: Tensor, levels: Tensor, *, bits: int, group: Group, stored: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Nearest of ascending `levels` [L], L <= 2**bits, to `weight` [n, k] over the largest magnitude of its group.

    Returns codes [n, packed_bytes(k, bits)] uint8 and the magnitudes in dtype `stored`, [n, ceil(k / group)], [n, 1]
    for "channel" or [1, 1] for "tensor". Raises ValueError for settings that do not fit, TypeError for a wrong dtype.
    """
    _check(weight, bits, group, stored)
    check_dtype("levels", levels.dtype)
    if levels.ndim != 1 or not 0 < len(levels) <= 1 << bits:
        raise ValueError(f"levels must be [1 .. {1 << bits}] for {bits} bits, got {list(levels.shape)}")
    codes, scale, _ = _quantize_any(weight, levels.contiguous(), "codebook", bits, group, stored)
    return codes, scale


def affine_quantize(
    weight: Tensor, *, bits: int, group: Group, zero: str | None, stored: torch.dtype
) -> tuple[Tensor, ...]:
    """Round `weight` [n, k] to the grid (code - zero) * scale of its group, `bits` 2..8.

    Returns codes [n, packed_bytes(k, bits)] uint8, scales in dtype `stored` as in `codebook_quantize`, and for `zero`
    "integer" the zeros packed like codes, [rows, packed_bytes(groups, bits)], for "float" the zeros in float16; None
    is the symmetric grid. Raises ValueError for settings that do not fit, TypeError for a wrong dtype.
    """
    _check(weight, bits, group, stored)
    if bits < 2 or zero not in KINDS:
        raise ValueError(f"bits must be 2..8 and zero one of {KINDS}, got bits {bits} and zero {zero!r}")
    codes, scale, zeros = _quantize_any(weight, None, zero or "symmetric", bits, group, stored)
    return (codes, scale) if zeros is None else (codes, scale, zeros)


def mxfp4_quantize(weight: Tensor, *, group: Group) -> tuple[Tensor, Tensor]:
    """Round `weight` [n, k] to E2M1 numbers times a power of two that `group` weights share, 32 in the specification.

    Returns codes [n, packed_bytes(k, 4)] uint8, whose bit 3 is the sign, and E8M0 codes of the scales, uint8, of the
    shape of those of `codebook_quantize`. The same errors.
    """
    _check(weight, 4, group, torch.float32)
    codes, scale, _ = _quantize_any(weight, None, "mx", 4, group, torch.uint8)
    return codes, scale


def _check(weight: Tensor, bits: int, group: Group, stored: torch.dtype) -> None:
    check_dtype("weight", weight.dtype)
    check_dtype("stored", stored)
    if weight.ndim != 2 or weight.numel() == 0 or weight.shape[1] * 8 >= 2**31:
        raise ValueError(f"weight must be [n, k] with n > 0 and 0 < k < 2**28, got {list(weight.shape)}")
    if group not in ("channel", "tensor") and not (isinstance(group, int) and group > 0):
        raise ValueError(f"group must be a positive integer, 'channel' or 'tensor', got {group!r}")
    packed_bytes(weight.shape[1], bits)


def _quantize_any(
    weight: Tensor, levels: Tensor | None, kind: str, bits: int, group: Group, stored: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales and zeros (None where the kind has none)."""
    weight = weight.contiguous()
    n, k = weight.shape
    size = min(int(group), k) if isinstance(group, int) else k
    groups = -(-k // size)
    codes = torch.empty(n, packed_bytes(k, bits), dtype=torch.uint8, device=weight.device)
    if group == "tensor" or size > LONGEST or (groups > 1 and size * bits % 8):
        scale, zeros, inverse, shift = _sides(weight, kind, bits, group, size, stored)
        _encode_all(weight, codes, levels, inverse, shift, kind, bits, size)
        return codes, scale, zeros
    scale = torch.empty(n, groups, dtype=stored, device=weight.device)
    zeros = None
    if kind == "integer":
        zeros = torch.empty(n, packed_bytes(groups, bits), dtype=torch.uint8, device=weight.device)
    elif kind == "float":
        zeros = torch.empty(n, groups, dtype=torch.float16, device=weight.device)
    width = max(8, triton.next_power_of_2(size))
    cells = max(1, (TILE_INTERPRETED if QUANTIZE.interpreted else TILE) // width)
    across = min(cells, triton.next_power_of_2(groups), 64)
    across = max(across, 8) if kind == "integer" else across  # eight zeros fill whole bytes
    down = min(max(1, cells // across), triton.next_power_of_2(n))
    arguments = {
        "weight_ptr": weight,
        "codes_ptr": codes,
        "scale_ptr": scale,
        "zero_ptr": zeros,
        "levels_ptr": levels,
        **{"n": n, "k": k, "groups": groups, "n_levels": 0 if levels is None else len(levels)},
        **{"row_bytes": codes.shape[1], "zero_bytes": zeros.shape[1] if kind == "integer" and zeros is not None else 0},
        **{"KIND": kind, "BITS": bits, "GROUP": size, "WIDTH": width, "BLOCK_N": down, "BLOCK_G": across},
    }
    grid = (triton.cdiv(n, down) * triton.cdiv(groups, across),)
    Launch(QUANTIZE, lambda meta: grid, arguments).run()
    return codes, scale, zeros


def _sides(
    weight: Tensor, kind: str, bits: int, group: Group, size: int, stored: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Scales and zeros as they are stored, and what `_encode` multiplies with and adds, float32."""
    n, k = weight.shape
    cell = size if isinstance(group, int) else min(k, LONGEST)  # a whole row in pieces
    pieces = -(-k // cell)
    low, high = (torch.empty(n, pieces, dtype=torch.float32, device=weight.device) for _ in range(2))
    block = min(LONGEST, triton.next_power_of_2(cell))
    down = max(1, (TILE_INTERPRETED if EXTREMES.interpreted else TILE) // block)
    fixed = {"n": n, "k": k, "groups": pieces, "GROUP": cell, "BLOCK_C": down, "BLOCK": block}
    programs = (triton.cdiv(n * pieces, down),)
    Launch(EXTREMES, lambda meta: programs, {"weight_ptr": weight, "low_ptr": low, "high_ptr": high, **fixed}).run()
    rows, groups = (1, 1) if group == "tensor" else (n, pieces if isinstance(group, int) else 1)
    scale, inverse, shift, zeros = (
        torch.empty(rows, groups, dtype=dtype, device=weight.device)
        for dtype in (stored, torch.float32, torch.float32, torch.float16)
    )
    down, block = (1, 1024) if groups * rows == 1 else (64, min(16, triton.next_power_of_2(pieces)))
    fixed = {"cells": rows * groups, "pieces": n * pieces // (rows * groups), "BLOCK_C": down, "BLOCK": block}
    outputs = {"scale_ptr": scale, "inverse_ptr": inverse, "shift_ptr": shift}
    stored_zeros = {"zero_ptr": zeros if kind == "float" else None}
    grid = (triton.cdiv(rows * groups, down),)
    sides = {"low_ptr": low, "high_ptr": high, **outputs, **stored_zeros, **fixed, "KIND": kind, "BITS": bits}
    Launch(SIDES, lambda meta: grid, sides).run()
    if kind == "float":
        return scale, zeros, inverse, shift
    if kind != "integer":
        return scale, None, inverse, None if kind in ("codebook", "mx") else shift
    packed = torch.empty(rows, packed_bytes(groups, bits), dtype=torch.uint8, device=weight.device)
    _encode_all(shift, packed, None, torch.ones_like(shift[:1, :1]), None, "whole", bits, groups)
    return scale, packed, inverse, shift


def _encode_all(
    weight: Tensor,
    codes: Tensor,
    levels: Tensor | None,
    inverse: Tensor,
    shift: Tensor | None,
    kind: str,
    bits: int,
    size: int,
) -> None:
    """Write `codes` of `weight` [n, k] under `inverse` and `shift` [rows, groups]."""
    n, k = weight.shape
    wide = triton.next_power_of_2(k) if ENCODE.interpreted else 512
    block_k = max(8, min(1024, wide, triton.next_power_of_2(k)))
    down = min(triton.next_power_of_2(n), max(1, (TILE_INTERPRETED if ENCODE.interpreted else 2048) // block_k))
    side_row = 0 if len(inverse) == 1 else inverse.shape[1]
    arguments = {
        "weight_ptr": weight,
        "codes_ptr": codes,
        "inverse_ptr": inverse,
        "shift_ptr": shift,
        "levels_ptr": levels,
        **{"n": n, "k": k, "row_bytes": codes.shape[1], "side_row": side_row},
        **{"n_levels": 0 if levels is None else len(levels), "KIND": kind, "BITS": bits},
        **{"GROUP": 0 if size >= k else size, "BLOCK_N": down, "BLOCK_K": block_k},
    }
    grid = (triton.cdiv(n, down) * triton.cdiv(k, block_k),)
    Launch(ENCODE, lambda meta: grid, arguments).run()


OPERATIONS = (
    Op(
        name="codebook_quantize",
        formula="codes, scale = nearest(w / max|w|), max|w|",
        source="Dettmers et al. 2023 (QLoRA), arXiv 2305.14314",
        reference=codebook_reference,
        triton=codebook_quantize,
        examples=codebook_examples,
        sized=codebook_sized,
        tolerance=EXACT,
    ),
    Op(
        name="affine_quantize",
        formula="codes, scale, zero = round(w / scale) + zero, range / (2**bits - 1), -low / scale",
        source="Jacob et al. 2018, arXiv 1712.05877",
        reference=affine_reference,
        triton=affine_quantize,
        examples=affine_examples,
        sized=affine_sized,
        tolerance=EXACT,
    ),
    Op(
        name="mxfp4_quantize",
        formula="codes, scale = nearest E2M1(w / 2**e), e = floor(log2(max|w|)) - 2",
        source="OCP Microscaling Formats (MX) specification v1.0",
        reference=mxfp4_reference,
        triton=mxfp4_quantize,
        examples=mxfp4_examples,
        sized=mxfp4_sized,
        tolerance=EXACT,
    ),
)
