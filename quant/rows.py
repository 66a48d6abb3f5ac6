"""Blocks of rows: a CPU goes over a weight so many rows at a time, so that what is computed stays near the processor.

Arrays of the size of a whole layer come from the system and go back to it each time they are made, and the page faults
of that can cost more than the arithmetic.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["CACHED", "row_blocks"]

CACHED = 1 << 19  # weights in a block: more leave the caches, fewer wake other threads more often


def row_blocks(weight: Tensor) -> list[slice]:
    """Slices that cover the rows of `weight` [n, k], n >= 1, in order; one slice on a device other than the CPU.

    >>> import torch
    >>> row_blocks(torch.empty(5, 1 << 17))
    [slice(0, 4, None), slice(4, 8, None)]
    """
    n, k = weight.shape
    height = max(1, CACHED // max(k, 1)) if weight.device.type == "cpu" else n
    return [slice(top, top + height) for top in range(0, n, height)]
