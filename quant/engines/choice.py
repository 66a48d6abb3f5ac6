"""Which engine "auto" takes: the fastest that keeps the precision of the compute dtype."""

from __future__ import annotations

import time
from functools import cache

import torch

from quant.core import QuantizedTensor
from quant.engines.base import ENGINES, Engine
from quant.formats import Affine

__all__ = ["check_name", "choose"]

EXACT = ("w8a8", "around", "triton", "lut", "tiled")
PACKED = ("int4pack", "int8pack")  # they round scales and x to bfloat16: only for a caller that computes in it
PACKED_BATCH = 64  # beyond this many rows of x, decoding a tile once costs less than the packed kernels' product


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
    if dtype == torch.bfloat16 and m <= PACKED_BATCH:
        for packed in PACKED:
            if not ENGINES[packed].refuses(weight, dtype, device) and is_fast(packed):
                return packed
    return next(exact for exact in EXACT if not ENGINES[exact].refuses(weight, dtype, device))


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is an engine or "auto"."""
    if name != "auto" and name not in ENGINES:
        raise ValueError(f"unknown engine {name!r}; known: auto, {', '.join(ENGINES)}")


@cache
def is_fast(name: str) -> bool:
    """Whether a packed product beats the tiled one on this CPU: timed once, the first time it matters.

    Without AVX-512 the packed kernels fall back to loops that are tens of times slower.
    """
    n, k, group = 512, 1024, "channel" if name == "int8pack" else 64
    bits = 8 if name == "int8pack" else 4
    codes = torch.full((n, k * bits // 8), 17, dtype=torch.uint8)
    scale = torch.ones(n, 1 if group == "channel" else k // 64)
    weight = Affine((n, k), torch.float32, codes, scale, None, bits, group)
    x = torch.ones(4, k, dtype=torch.bfloat16)
    return _seconds(ENGINES[name], weight, x) < _seconds(ENGINES["lut"], weight, x)


def _seconds(engine: Engine, weight: Affine, x: torch.Tensor) -> float:
    """Least of five times of one product, after a warm-up."""
    ready = engine.prepare(weight, torch.bfloat16)
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        ready.matmul(x)
        times.append(time.perf_counter() - begin)
    return min(times[1:])
