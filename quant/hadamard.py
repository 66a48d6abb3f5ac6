"""The Walsh-Hadamard transform of consecutive groups: y = x H_g / sqrt(g), H_2g = [[H_g, H_g], [H_g, -H_g]].

H_g is symmetric and H_g H_g = g, so the transform is its own inverse. H_ab = H_a (x) H_b is applied one factor of at
most 32 at a time: products with small matrices, in O(k log k) steps for groups of any size.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["group_of", "hadamard", "transformed"]

FACTOR = 32  # largest factor applied by one product


@lru_cache(maxsize=16)
def hadamard(size: int, device: torch.device) -> Tensor:
    """H of `size`, a power of two, over its square root: [size, size] float32 on `device`."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < size:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    h /= len(h) ** 0.5
    return h.to(device, torch.float32)


def group_of(k: int, largest: int = 1024) -> int:
    """The largest power of two, up to `largest`, that divides `k`.

    >>> group_of(4096), group_of(576), group_of(11008)
    (1024, 64, 256)
    """
    return min(k & -k, largest)


def transformed(x: Tensor, group: int) -> Tensor:
    """x [..., k] with every `group` consecutive values transformed; computed in float32, or in float64 if x is that."""
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    done = 1
    while done < group:
        size = min(FACTOR, group // done)
        h = hadamard(size, x.device).to(y.dtype)
        y = torch.matmul(h, y.reshape(-1, size, done)) if done > 1 else y.reshape(-1, size) @ h
        done *= size
    return y.reshape(x.shape).to(x.dtype)
