"""Pairs of weights that share a code: w[i, 2 j], w[i, 2 j + 1] = levels[c[i, j]] * scale, and what is done with them.

    dequantize   the weight                          matmul   y = x @ w.T
    grad         dx = dy @ w                         lora     y = x @ w.T + inner @ b.T

At 4 bits a code that is 2 bits a weight. The kernels are those of codebooks, told that a code stands for two columns:
both values of a pair are looked up where the code is, and lie side by side in the tile. An odd row has a last code of
which the second value is no weight.
Sources: Malinovskii et al. 2024 (HIGGS), arXiv 2411.17525; table look-up in the product: Guo et al. 2024 (FLUTE),
arXiv 2407.10960.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.backward import multiply_back, turned
from kernels.checks import check_dtype, check_x, spread
from kernels.examples import pairs_examples, pairs_sized
from kernels.launchers import decode, multiply, weight_arguments
from kernels.lora import all_updated, multiply_updated, updated
from kernels.nested import Scale, scale_values
from kernels.op import DECODED, MULTIPLIED, Op
from kernels.packing import unpack

__all__ = ["OPERATIONS", "pairs_dequantize", "pairs_grad", "pairs_lora", "pairs_matmul"]

Group = int | str


def dequantize_reference(
    codes: Tensor,
    levels: Tensor,
    scale: Scale,
    *,
    shape: tuple[int, int],
    bits: int,
    group: Group,
    dtype: torch.dtype,
) -> Tensor:
    """The definition of `pairs_dequantize`, in float32, or in float64 when that is the `dtype`."""
    (n, k), wide = shape, torch.promote_types(dtype, torch.float32)
    w = levels.to(wide)[unpack(codes, bits, -(-k // 2)).long()].view(n, -1)[:, :k]
    return (w * spread(scale_values(scale, wide), k, group)).to(dtype)


def matmul_reference(x: Tensor, codes: Tensor, levels: Tensor, scale: Scale, *, bits: int, group: Group) -> Tensor:
    """The definition of `pairs_matmul`, in float32, or in float64 when `x` is float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    shape = (codes.shape[0], x.shape[-1])
    w = dequantize_reference(codes, levels, scale, shape=shape, bits=bits, group=group, dtype=wide)
    return (x.to(wide) @ w.T).to(x.dtype)


def grad_reference(
    dy: Tensor, codes: Tensor, levels: Tensor, scale: Scale, *, k: int, bits: int, group: Group
) -> Tensor:
    """The definition of `pairs_grad`, in float32, or in float64 when `dy` is float64."""
    wide = torch.promote_types(dy.dtype, torch.float32)
    shape = (codes.shape[0], k)
    w = dequantize_reference(codes, levels, scale, shape=shape, bits=bits, group=group, dtype=wide)
    return (dy.to(wide) @ w).to(dy.dtype)


def lora_reference(
    x: Tensor, codes: Tensor, levels: Tensor, scale: Scale, inner: Tensor, b: Tensor, *, bits: int, group: Group
) -> Tensor:
    """The definition of `pairs_lora`, in float32, or in float64 when `x` is float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = matmul_reference(x.to(wide), codes, levels, scale, bits=bits, group=group)
    return (y + inner.to(wide) @ b.to(wide).T).to(x.dtype)


def pairs_dequantize(
    codes: Tensor,
    levels: Tensor,
    scale: Scale,
    *,
    shape: tuple[int, int],
    bits: int,
    group: Group,
    dtype: torch.dtype,
) -> Tensor:
    """The weight [n, k] = `shape` in `dtype`: float32, float16 or bfloat16.

    `codes` [n, packed_bytes(ceil(k / 2), bits)] uint8; `levels` [L, 2] floating with L <= 2**bits; `scale`
    [n, ceil(k / group)], [n, 1] for "channel", [1, 1] for "tensor", or a `NestedScale` of as many codes; a group is
    counted in weights and may end within a pair. A code of L or more decodes to 0.
    Raises ValueError for shapes that do not belong together, TypeError for a wrong dtype.
    """
    check_dtype("dtype", dtype)
    return decode(_weight(codes, levels, scale, shape, bits, group), dtype, codes.device)


def pairs_matmul(x: Tensor, codes: Tensor, levels: Tensor, scale: Scale, *, bits: int, group: Group) -> Tensor:
    """x [..., k] @ w.T -> [..., n] in the dtype of `x`, accumulated in float32.

    The other arguments, and the errors, are those of `pairs_dequantize`; k is the last dimension of `x`.
    """
    check_x(x)
    return multiply(x, _weight(codes, levels, scale, _shape(codes, x.shape[-1]), bits, group))


def pairs_grad(dy: Tensor, codes: Tensor, levels: Tensor, scale: Scale, *, k: int, bits: int, group: Group) -> Tensor:
    """dy [..., n] @ w -> [..., k] in the dtype of `dy`, accumulated in float32; `k` counts weights, not codes."""
    return multiply_back(dy, _weight(codes, levels, scale, _shape(codes, k), bits, group))


def pairs_lora(
    x: Tensor, codes: Tensor, levels: Tensor, scale: Scale, inner: Tensor, b: Tensor, *, bits: int, group: Group
) -> Tensor:
    """x [..., k] @ w.T + inner [..., r] @ b [n, r].T -> [..., n] in the dtype of `x`.

    `inner` and `b` are floating, of any of the dtypes of x, r at most 64.
    """
    check_x(x)
    return multiply_updated(x, inner, b, _weight(codes, levels, scale, _shape(codes, x.shape[-1]), bits, group))


def _shape(codes: Tensor, k: int) -> tuple[int, int]:
    return (len(codes) if codes.ndim else 0, k)


def _weight(
    codes: Tensor, levels: Tensor, scale: Scale, shape: tuple[int, int], bits: int, group: Group
) -> dict[str, Any]:
    return weight_arguments(codes, levels, scale, None, shape, bits, group, 0, pairs=True)


OPERATIONS = (
    Op(
        name="pairs_dequantize",
        formula="w[i, 2 j], w[i, 2 j + 1] = levels[codes[i, j]] * scale",
        source="Malinovskii et al. 2024 (HIGGS), arXiv 2411.17525",
        reference=dequantize_reference,
        triton=pairs_dequantize,
        examples=lambda dtype, device: pairs_examples(dtype, device, product=False),
        sized=lambda m, n, k, dtype, device: pairs_sized(m, n, k, dtype, device, product=False),
        tolerance=DECODED,
    ),
    Op(
        name="pairs_matmul",
        formula="y = x @ w.T, w[i, 2 j], w[i, 2 j + 1] = levels[codes[i, j]] * scale",
        source="Malinovskii et al. 2024 (HIGGS), arXiv 2411.17525",
        reference=matmul_reference,
        triton=pairs_matmul,
        examples=lambda dtype, device: pairs_examples(dtype, device, product=True),
        sized=lambda m, n, k, dtype, device: pairs_sized(m, n, k, dtype, device, product=True),
        tolerance=MULTIPLIED,
    ),
    Op(
        name="pairs_grad",
        formula="dx = dy @ w, w[i, 2 j], w[i, 2 j + 1] = levels[codes[i, j]] * scale",
        source="Dettmers et al. 2023 (QLoRA), arXiv 2305.14314",
        reference=grad_reference,
        triton=pairs_grad,
        examples=lambda dtype, device: map(turned, pairs_examples(dtype, device, product=True)),
        sized=lambda m, n, k, dtype, device: turned(pairs_sized(m, n, k, dtype, device, product=True)),
        tolerance=MULTIPLIED,
    ),
    Op(
        name="pairs_lora",
        formula="y = x @ w.T + inner @ b.T, w[i, 2 j], w[i, 2 j + 1] = levels[codes[i, j]] * scale",
        source="Hu et al. 2021 (LoRA), arXiv 2106.09685",
        reference=lora_reference,
        triton=pairs_lora,
        examples=lambda dtype, device: all_updated(pairs_examples(dtype, device, product=True)),
        sized=lambda m, n, k, dtype, device: updated(pairs_sized(m, n, k, dtype, device, product=True), 16),
        tolerance=MULTIPLIED,
    ),
)
