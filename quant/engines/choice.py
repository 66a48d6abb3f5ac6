"""Which engine "auto" takes: the fastest that keeps the precision of the compute dtype."""

from __future__ import annotations

import torch

from quant.core import QuantizedTensor
from quant.engines.base import ENGINES

__all__ = ["choose"]

EXACT = ("triton", "lut", "tiled")
BFLOAT16 = ("int4pack", "int8pack")  # these round scales and x to bfloat16: only for a caller that computes in it
PACKED_BATCH = 64  # beyond this many rows of x, decoding tiles once costs less than the packed kernels' slower product


def choose(name: str, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device, m: int) -> str:
    """The engine to use for x [m, k] of `dtype` on `device`.

    Raises ValueError for an unknown name, and for a named engine that refuses this weight, with its reason.
    """
    if name != "auto":
        check_name(name)
        reason = ENGINES[name].refuses(weight, dtype, device)
        if reason:
            raise ValueError(f"engine {name!r} refuses this weight: {reason}; use engine='auto'")
        return name
    packed: tuple[str, ...] = BFLOAT16 if dtype == torch.bfloat16 and m <= PACKED_BATCH else ()
    for candidate in (*packed, *EXACT):
        if not ENGINES[candidate].refuses(weight, dtype, device):
            return candidate
    return "reference"


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is an engine or "auto"."""
    if name != "auto" and name not in ENGINES:
        raise ValueError(f"unknown engine {name!r}; known: auto, {', '.join(ENGINES)}")
