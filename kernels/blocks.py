"""Weights of which whole blocks are kept: the products with them, and the weights themselves with their zeros.

    w[h b + i, v c + j] = value[number of kept blocks before (b, c), row by row; v i + j] where mask[b, c], else zero

Blocks have h rows and v columns, powers of two. Each lies in one piece, row by row, and reaches over the edge of the
weight where that is no multiple. The values are floating, or codes of `bits` bits of a weight [kept, h v]:
(code - zero) * scale or levels[code] * scale, in groups that run along a block.
Sources: Narang et al. 2017, arXiv 1711.02782; Gray et al. 2017 (block-sparse products), OpenAI.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import blocks_reference as reference
from kernels.blocks_dequantize import blocks_decode
from kernels.blocks_examples import blocks_examples, blocks_sized
from kernels.blocks_products import blocks_multiply
from kernels.checks import check_codes, check_dtype, check_x, unread_block
from kernels.launchers import weight_arguments
from kernels.nested import Scale
from kernels.op import DECODED, MULTIPLIED, Op

__all__ = ["OPERATIONS", "blocks_dequantize", "blocks_grad", "blocks_matmul"]

Group = int | str


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
    """x [..., k] @ w.T -> [..., n] in the dtype of `x`, accumulated in float32.

    With h, v = `block`: `mask` [ceil(n / h), packed_bytes(ceil(k / v), 1)] uint8, first block in the highest bit;
    `starts` of its shape, as `kernels.sparse_starts.mask_starts` gives them for segments of 8; `values` [kept, h v]
    floating, or [kept, packed_bytes(h v, bits)] uint8 with `levels`, `scale` and `zero` as in `codebook_matmul` and
    `affine_matmul` for a weight [kept, h v]. Floating values take none of these, and `bits` and `rows` are 0. That the
    mask keeps as many blocks as there are is not checked, since nothing waits for the device; none beyond them is read.
    Raises ValueError for shapes that do not belong together, TypeError for dtypes.
    """
    check_x(x)
    return blocks_multiply(
        x, _weight(mask, starts, values, levels, scale, zero, (n, x.shape[-1]), block, bits, group, rows)
    )


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
    """dy [..., n] @ w -> [..., k] in the dtype of `dy`; the weight is given as to `blocks_matmul`, same errors."""
    check_x(dy)
    weight = _weight(mask, starts, values, levels, scale, zero, (dy.shape[-1], k), block, bits, group, rows)
    return blocks_multiply(dy, weight, turned=True)


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
    """The weight of `blocks_matmul`, [n, k] = `shape` in `dtype`, float32, float16 or bfloat16; same errors."""
    check_dtype("dtype", dtype)
    out = torch.empty(*shape, dtype=dtype, device=mask.device)
    blocks_decode(out, _weight(mask, starts, values, levels, scale, zero, shape, block, bits, group, rows))
    return out


def _weight(
    mask: Tensor,
    starts: Tensor,
    values: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    shape: tuple[int, int],
    block: tuple[int, int],
    bits: int,
    group: Group,
    rows: int,
) -> dict[str, Any]:
    """What the kernels are told of the weight."""
    (n, k), (height, width) = shape, block
    if reason := unread_block(height, width):
        raise ValueError(reason)
    check_codes(mask, (-(-n // height), -(-k // width)), 1)
    if starts.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"starts must be int32 or int64, got {starts.dtype}")
    if starts.shape != mask.shape:
        raise ValueError(f"starts must be {list(mask.shape)} like the mask, got {list(starts.shape)}")
    place = {
        "n": n,
        "k": k,
        "blocks_down": mask.shape[0],
        "mask_bytes": mask.shape[1],
        "HEIGHT": height,
        "WIDTH": width,
    }
    own = {"mask_ptr": mask, "starts_ptr": starts.contiguous(), **place}
    return {**_values(values, levels, scale, zero, height * width, bits, group, rows), **own}


def _values(
    values: Tensor,
    levels: Tensor | None,
    scale: Scale | None,
    zero: Tensor | None,
    size: int,
    bits: int,
    group: Group,
    rows: int,
) -> dict[str, Any]:
    """What the kernels are told of the kept blocks, floating or coded."""
    if values.dtype == torch.uint8:
        if levels is None and scale is None:
            raise ValueError("codes of kept blocks need levels or a scale")
        given = weight_arguments(values, levels, scale, zero, (len(values), size), bits, group, rows)
        del given["PAIRS"], given["k"]
        own = {"values_ptr": given.pop("codes_ptr"), "value_row": given.pop("row_bytes"), "kept": given.pop("n")}
        each = given["GROUP"]
        return {**given, **own, "PIECE": min(size, each & -each) if each else size, "CENTRE": 1 << (bits - 1)}
    check_dtype("values", values.dtype)
    if values.ndim != 2 or values.shape[1] != size:
        raise ValueError(f"values must be [kept, {size}], got {list(values.shape)}")
    if bits or rows or any(side is not None for side in (levels, scale, zero)):
        raise ValueError(f"{values.dtype} values have no levels, scale or zero, and bits and rows are 0")
    none = dict.fromkeys(("levels_ptr", "zero_ptr"))
    none |= dict.fromkeys(("scale_ptr", "nest_levels_ptr", "nest_scale_ptr", "nest_offset_ptr"))
    fixed = {"side_row": 0, "n_levels": 0, "BITS": 0, "GROUP": 0, "ROWS": 0, "NEST": 0, "CENTRE": 0, "PIECE": size}
    return {**none, **fixed, "values_ptr": values.contiguous(), "kept": len(values), "value_row": size}


SOURCE = "Narang et al. 2017, arXiv 1711.02782"
OPERATIONS = (
    Op(
        name="blocks_matmul",
        formula="y = x @ w.T, block (b, c) of w = values[kept before (b, c)] where mask[b, c]",
        source=SOURCE,
        reference=reference.blocks_matmul,
        triton=blocks_matmul,
        examples=lambda dtype, device: blocks_examples(dtype, device, what="matmul"),
        sized=lambda m, n, k, dtype, device: blocks_sized(m, n, k, dtype, device, what="matmul"),
        tolerance=MULTIPLIED,
    ),
    Op(
        name="blocks_grad",
        formula="dx = dy @ w, block (b, c) of w = values[kept before (b, c)] where mask[b, c]",
        source=SOURCE,
        reference=reference.blocks_grad,
        triton=blocks_grad,
        examples=lambda dtype, device: blocks_examples(dtype, device, what="grad"),
        sized=lambda m, n, k, dtype, device: blocks_sized(m, n, k, dtype, device, what="grad"),
        tolerance=MULTIPLIED,
    ),
    Op(
        name="blocks_dequantize",
        formula="block (b, c) of w = values[kept before (b, c)] where mask[b, c]",
        source=SOURCE,
        reference=reference.blocks_dequantize,
        triton=blocks_dequantize,
        examples=lambda dtype, device: blocks_examples(dtype, device, what="dequantize"),
        sized=lambda m, n, k, dtype, device: blocks_sized(m, n, k, dtype, device, what="dequantize"),
        tolerance=DECODED,
    ),
)
