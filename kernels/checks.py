"""What the launchers ask of their tensors, and how a weight's scales reach a kernel.

A weight [n, k] has scales [n, ceil(k / group)], [n, 1] (group "channel") or [1, 1] (group "tensor"); the last group of
a row may be short.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.packing import packed_bytes

__all__ = [
    "check_codes",
    "check_dtype",
    "check_side",
    "check_x",
    "group_size",
    "row_stride",
    "side_shape",
    "spread",
    "unread_block",
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST = 64  # rows or columns of a block of a block-sparse weight


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """Raise TypeError unless `dtype` is one that the kernels compute with."""
    if dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {dtype}")


def check_x(x: Tensor) -> None:
    """Raise TypeError or ValueError unless `x` is a floating [..., k] with k > 0."""
    check_dtype("x", x.dtype)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be [..., k] with k > 0, got shape {list(x.shape)}")


def check_codes(codes: Tensor, shape: tuple[int, int], bits: int, *, long: bool = False) -> None:
    """Raise TypeError or ValueError unless `codes` are contiguous uint8 [n, packed_bytes(k, bits)].

    Rows of 2**31 bits and more are only for kernels that can count them: `long`.
    """
    n, k = shape
    if codes.dtype != torch.uint8:
        raise TypeError(f"codes must be uint8, got {codes.dtype}")
    if n <= 0 or k <= 0 or (k * bits >= 2**31 and not long):
        raise ValueError(f"a weight [n, k] = {[n, k]} of {bits} bits is empty, or a row exceeds 2**31 bits")
    if tuple(codes.shape) != (n, packed_bytes(k, bits)):
        raise ValueError(f"codes must be {[n, packed_bytes(k, bits)]} for {[n, k]}, got {list(codes.shape)}")
    if not codes.is_contiguous():
        raise ValueError("codes must be contiguous: pass codes.contiguous()")


def check_side(name: str, value: Tensor | None, shape: tuple[int, int], group: int | str) -> None:
    """Raise TypeError or ValueError unless scales or zeros are floating and of the shape that `group` asks for."""
    want = side_shape(shape, group)
    if value is None:
        return
    check_dtype(name, value.dtype)
    if tuple(value.shape) != want:
        raise ValueError(
            f"{name} must be {list(want)} for {list(shape)} in groups of {group!r}, got {list(value.shape)}"
        )


def side_shape(shape: tuple[int, int], group: int | str) -> tuple[int, int]:
    """Shape of the scales of a weight [n, k]. Raises ValueError for what is not a group."""
    if group not in ("channel", "tensor") and not (isinstance(group, int) and group > 0):
        raise ValueError(f"group must be a positive integer, 'channel' or 'tensor', got {group!r}")
    n, k = shape
    return (1, 1) if group == "tensor" else (n, 1 if group == "channel" else -(-k // int(group)))


def spread(value: Tensor, k: int, group: int | str) -> Tensor:
    """Scales or zeros as one value a weight, broadcastable to [n, k]."""
    return value.repeat_interleave(group, dim=1)[:, :k] if isinstance(group, int) else value


def unread_block(height: int, width: int) -> str:
    """Why the kernels do not read blocks of `height` x `width` weights; empty where they do."""
    if height * width >= 8 and all(0 < side <= LARGEST and not side & (side - 1) for side in (height, width)):
        return ""
    return f"blocks must be powers of two up to {LARGEST}, of 8 weights or more, got {height} x {width}"


def group_size(k: int, group: int | str) -> int:
    """The group as a kernel knows it: columns that share a scale, 0 when a whole row does."""
    return group if isinstance(group, int) and group < k else 0


def row_stride(value: Tensor | None) -> int:
    """Elements from one row's scales to the next row's, 0 when all rows share them."""
    return 0 if value is None or value.shape[0] == 1 else value.stride(0)
