"""Sparse weights of every kind of values: their products, and the weights themselves with their zeros.

    n_of_m     w[i, m c + index[i, h c + j]] = value[i, h c + j]      j < h = m / 2, m = 4 or 8; other weights are zero
    bitmask    w[i, j] = value[number of kept weights before (i, j), row by row] where mask[i, j], else zero

The values are floating, or codes of `bits` bits: value = (code - zero) * scale or levels[code] * scale, in groups that
run along the kept ones. A mask keeps any number of weights anywhere, so it also serves every other n of m
(`kernels.sparse_starts.mask_of_cells`). Two of four plain values or 4-bit codes, and masks over plain values, have
products of their own in `kernels.sparse`.
Sources: Mishra et al. 2021, arXiv 2104.08378; Sun et al. 2021 (DominoSearch, n:m), NeurIPS; Han et al. 2016 (Deep
Compression: pruned, then quantized), arXiv 1510.00149.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import sparse_reference as reference
from kernels.checks import check_codes, check_dtype, check_x
from kernels.launchers import weight_arguments
from kernels.nested import Scale
from kernels.op import DECODED, MULTIPLIED, Op
from kernels.sparse_coded import coded_multiply
from kernels.sparse_dequantize import sparse_dequantize
from kernels.sparse_formats_examples import (
    bitmask_examples,
    bitmask_sized,
    n_of_m_examples,
    n_of_m_sized,
)
from kernels.sparse_starts import segments_of

__all__ = ["OPERATIONS", "bitmask_coded_matmul", "bitmask_dequantize", "n_of_m_dequantize", "n_of_m_matmul"]

Group = int | str


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
    """x [..., k] @ w.T -> [..., n] in the dtype of `x`, for w of which half of every `of` = 4 or 8 weights are kept.

    With c = ceil(k / of) and h = of / 2: `indices` h c places of 2 or 3 bits a row, [n, packed_bytes(h c, 2 or 3)]
    uint8, ascending in each cell; `values` [n, h c] floating, or [n, packed_bytes(h c, bits)] uint8 with `levels`,
    `scale` and `zero` as in `codebook_matmul` and `affine_matmul` for a weight [n, h c]. Floating values take none of
    these, and `bits` and `rows` are 0. Raises ValueError for shapes that do not belong together, TypeError for dtypes.
    """
    check_x(x)
    shape = (len(indices), x.shape[-1])
    return coded_multiply(x, _cells(indices, values, levels, scale, zero, shape, of, bits, group, rows))


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
    """The weight of `n_of_m_matmul`, [n, k] = `shape` in `dtype`, float32, float16 or bfloat16; same errors."""
    check_dtype("dtype", dtype)
    out = torch.empty(*shape, dtype=dtype, device=indices.device)
    sparse_dequantize(out, _cells(indices, values, levels, scale, zero, shape, of, bits, group, rows))
    return out


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
    """x [..., k] @ w.T -> [..., n] in the dtype of `x`, for w of which codes of the weights that `mask` names are kept.

    `mask` and `starts` are those of `bitmask_matmul`; `codes` [1, packed_bytes(kept, bits)] uint8 with `levels`,
    `scale` and `zero` as in `codebook_matmul` and `affine_matmul` for a weight [1, kept]. That the mask keeps `kept`
    weights is not checked; no code beyond them is read. Raises ValueError for shapes that do not belong together,
    TypeError for dtypes.
    """
    check_x(x)
    if codes.dtype != torch.uint8:
        raise TypeError(f"codes must be uint8, got {codes.dtype}; bitmask_matmul takes floating values")
    shape = (len(mask), x.shape[-1])
    return coded_multiply(x, _masked(mask, starts, codes, levels, scale, zero, shape, kept, bits, group))


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
    """The weight of `bitmask_matmul` or `bitmask_coded_matmul`, [n, k] = `shape` in `dtype`; same errors.

    `values` [1, kept] floating, without levels, scale and zero and with `bits` 0, or the codes.
    """
    check_dtype("dtype", dtype)
    out = torch.empty(*shape, dtype=dtype, device=mask.device)
    sparse_dequantize(out, _masked(mask, starts, values, levels, scale, zero, shape, kept, bits, group))
    return out


def _cells(
    indices: Tensor,
    values: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    shape: tuple[int, int],
    of: int,
    bits: int,
    group: Group,
    rows: int,
) -> dict[str, Any]:
    """What the kernels are told of an n:m weight."""
    if of not in (4, 8):
        raise ValueError(f"half of every 4 or 8 weights must be kept, got of {of}; others are masks: see mask_of_cells")
    n, k = shape
    kept = of // 2 * -(-k // of)
    check_codes(indices, (n, kept), (of - 1).bit_length())
    value = _values(values, levels, scale, zero, (n, kept), bits, group, rows)
    own = {"indices_ptr": indices, "starts_ptr": None, "k": k, "index_bytes": indices.shape[1]}
    size, codes = value["value_row"], value["values_ptr"]
    words = value["BITS"] == 4 and not rows and size % 4 == 0 and codes.data_ptr() % 4 == 0
    value |= {"values_ptr": codes.view(torch.int32), "value_row": size // 4} if words else {}
    return {**value, **own, "segments": 0, "OF": of, "WORDS": words}


def _masked(
    mask: Tensor,
    starts: Tensor,
    values: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    shape: tuple[int, int],
    kept: int,
    bits: int,
    group: Group,
) -> dict[str, Any]:
    """What the kernels are told of a weight under a mask."""
    n, k = shape
    check_codes(mask, shape, 1)
    if starts.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"starts must be int32 or int64, got {starts.dtype}")
    if tuple(starts.shape) != (n, segments_of(k)):
        raise ValueError(f"starts must be {[n, segments_of(k)]} for {[n, k]}, got {list(starts.shape)}")
    value = _values(values, levels, scale, zero, (1, kept), bits, group, 0)
    own = {"indices_ptr": mask, "starts_ptr": starts.contiguous(), "n": n, "k": k, "index_bytes": mask.shape[1]}
    return {**value, **own, "segments": starts.shape[1], "OF": 0, "WORDS": False, "PIECE": 8}


def _values(
    values: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    shape: tuple[int, int],
    bits: int,
    group: Group,
    rows: int,
) -> dict[str, Any]:
    """What the kernels are told of the kept weights, floating or coded, as of a weight of `shape`."""
    if values.dtype == torch.uint8:
        if levels is None and scale is None:
            raise ValueError("codes of kept weights need levels or a scale")
        given = weight_arguments(values, levels, scale, zero, shape, bits, group, rows, long=shape[0] == 1)
        given["values_ptr"] = given.pop("codes_ptr")
        del given["PAIRS"]
        size = given["GROUP"]
        own = {"value_row": given.pop("row_bytes"), "PIECE": min(8, size & -size) if size else 8}
        return {**given, **own, "kept": given.pop("k"), "CENTRE": 1 << (bits - 1)}
    check_dtype("values", values.dtype)
    if tuple(values.shape) != shape:
        raise ValueError(f"values must be {list(shape)}, got {list(values.shape)}")
    if bits or rows or any(side is not None for side in (levels, scale, zero)):
        raise ValueError(f"{values.dtype} values have no levels, scale or zero, and bits and rows are 0")
    none = dict.fromkeys(("levels_ptr", "zero_ptr"))
    none |= dict.fromkeys(("scale_ptr", "nest_levels_ptr", "nest_scale_ptr", "nest_offset_ptr"))
    fixed = {"side_row": 0, "n_levels": 0, "BITS": 0, "GROUP": 0, "ROWS": 0, "NEST": 0, "CENTRE": 0, "PIECE": 8}
    placed = {"values_ptr": values.contiguous(), "n": shape[0], "kept": shape[1], "value_row": shape[1]}
    return {**none, **fixed, **placed}


OPERATIONS = (
    Op(
        name="n_of_m_matmul",
        formula="y = x @ w.T, w[i, m c + index[i, h c + j]] = value[i, h c + j], h = m / 2",
        source="Mishra et al. 2021, arXiv 2104.08378",
        reference=reference.n_of_m_matmul,
        triton=n_of_m_matmul,
        examples=lambda dtype, device: n_of_m_examples(dtype, device, product=True),
        sized=lambda m, n, k, dtype, device: n_of_m_sized(m, n, k, dtype, device, product=True),
        tolerance=MULTIPLIED,
    ),
    Op(
        name="n_of_m_dequantize",
        formula="w[i, m c + index[i, h c + j]] = value[i, h c + j], h = m / 2",
        source="Mishra et al. 2021, arXiv 2104.08378",
        reference=reference.n_of_m_dequantize,
        triton=n_of_m_dequantize,
        examples=lambda dtype, device: n_of_m_examples(dtype, device, product=False),
        sized=lambda m, n, k, dtype, device: n_of_m_sized(m, n, k, dtype, device, product=False),
        tolerance=DECODED,
    ),
    Op(
        name="bitmask_coded_matmul",
        formula="y = x @ w.T, w[i, j] = value[kept before (i, j)] where mask[i, j]",
        source="Han et al. 2016, arXiv 1510.00149",
        reference=reference.bitmask_coded_matmul,
        triton=bitmask_coded_matmul,
        examples=lambda dtype, device: bitmask_examples(dtype, device, product=True),
        sized=lambda m, n, k, dtype, device: bitmask_sized(m, n, k, dtype, device, product=True),
        tolerance=MULTIPLIED,
    ),
    Op(
        name="bitmask_dequantize",
        formula="w[i, j] = value[kept before (i, j)] where mask[i, j]",
        source="Han et al. 2015, arXiv 1506.02626",
        reference=reference.bitmask_dequantize,
        triton=bitmask_dequantize,
        examples=lambda dtype, device: bitmask_examples(dtype, device, product=False),
        sized=lambda m, n, k, dtype, device: bitmask_sized(m, n, k, dtype, device, product=False),
        tolerance=DECODED,
    ),
)
