"""What is timed on the CPU: products by every engine, quantizing, packing; each result checked first.

A product is checked against float64 arithmetic on the decoded weight, a quantized weight against the weight it came
from, packed codes against their bits counted out one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from numpy.random import Generator
from torch import Tensor

from bench.gate.blocks import Call
from bench.gate.load import Side

__all__ = ["Case", "Missing", "Ready", "cpu_cases", "fresh", "relative_error"]

EXACT, ROUNDED = 1e-5, 1e-2  # float32 sums of a thousand terms; x, scales and sums in bfloat16
SIZE = 1024
# method, engine, dtype of x and product, rows of x
PRODUCTS = (
    ("uniform-int4-g64", "int4pack", "bfloat16", 1),
    ("uniform-int4-g64", "int4pack", "bfloat16", 32),
    ("uniform-int8-channel", "int8pack", "bfloat16", 1),
    ("uniform-int8-channel", "int8pack", "bfloat16", 32),
    ("nf4-g64", "lut", "float32", 1),
    ("nf4-g64", "lut", "float32", 32),
    ("nf4-g64", "lut", "bfloat16", 1),
    ("nf4-g64-dq", "lut", "float32", 1),
    ("uniform-int3-g64", "lut", "float32", 1),
    ("uniform-int2-g64", "lut", "float32", 1),
    ("prune-50", "tiled", "float32", 1),
    ("prune-2of4-int4-g64", "tiled", "float32", 1),
)
# relative error of normal weights, a fifth above what the method makes of them
QUANTIZED = {
    "uniform-int4-g64": 0.13,
    "uniform-int4-asym-g64": 0.11,
    "uniform-int8-channel": 0.0095,
    "nf4-g64": 0.11,
    "nf4-g64-dq": 0.11,
    "mxfp4": 0.14,
    "kmeans-4bit-row": 0.12,
    "prune-50": 0.32,
    "prune-2of4": 0.44,
}
PACKED_BITS = (3, 4)


class Missing(Exception):  # noqa: N818 - a state of a version, not an error
    """This version does not have what the case times; the text says what."""


@dataclass(frozen=True)
class Ready:
    """A case made ready in one version: calls on inputs of their own, and what is wrong with its result (None)."""

    fresh: Callable[[Generator], Call]
    wrong: Callable[[], str | None]


@dataclass(frozen=True)
class Case:
    """Something to time. The name says all of it: kind, method, engine, dtype, m x n x k.

    `build` raises Missing where a version lacks it. `m` rows of x has the product that a record compares it with.
    """

    name: str
    build: Callable[[Side], Ready]
    m: int = 32


def cpu_cases() -> Iterator[Case]:
    for method, engine, dtype, m in PRODUCTS:
        name = f"linear/{engine}/{method}/{dtype}/{m}x{SIZE}x{SIZE}"
        yield Case(name, partial(_product, method=method, engine=engine, dtype=getattr(torch, dtype), m=m), m)
    for method, bound in QUANTIZED.items():
        n = 128 if method.startswith("kmeans") else SIZE // 2
        yield Case(f"quantize/{method}/{n}x{SIZE}", partial(_quantize, method=method, bound=bound, n=n))
    for bits in PACKED_BITS:
        for verb in ("pack", "unpack"):
            yield Case(f"{verb}/{bits}bit/{SIZE}x{SIZE}", partial(_packing, verb=verb, bits=bits))


def fresh(tensor: Tensor, rng: Generator) -> Tensor:
    """A copy whose memory begins at some multiple of 64 bytes inside a larger buffer; the strides are kept."""
    size = tensor.element_size()
    shift = int(rng.integers(64)) * 64 // size
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
    buffer = torch.empty(shift + span, dtype=tensor.dtype, device=tensor.device)
    return buffer.as_strided(tensor.shape, tensor.stride(), shift).copy_(tensor)


def relative_error(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want| in the Frobenius norm, in float64; infinite for another shape, NaN where `got` is NaN."""
    if got.shape != want.shape:
        return float("inf")
    return float((got.double() - want).norm() / want.norm())


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _method(side: Side, name: str) -> Any:
    methods = side.module("quant").METHODS
    if name not in methods:
        raise Missing(f"no method {name!r}")
    return methods[name]


def _product(side: Side, *, method: str, engine: str, dtype: torch.dtype, m: int) -> Ready:
    weight = _method(side, method).quantize(_normal(SIZE, SIZE, seed=0))
    if engine not in side.module("quant.engines").ENGINES:
        raise Missing(f"no engine {engine!r}")
    make = side.module("quant").QuantizedLinear
    x = _normal(m, SIZE, seed=1).to(dtype)

    def new(rng: Generator) -> Call:
        _drop_workspace(side)
        stored = {name: fresh(t, rng) for name, t in weight.stored().items()}
        layer, own = make(weight.with_stored(stored), None, engine, compute_dtype=dtype), fresh(x, rng)
        return torch.inference_mode()(lambda: layer(own))

    def wrong() -> str | None:
        layer = make(weight, None, engine, compute_dtype=dtype)
        with torch.inference_mode():
            error = relative_error(layer(x), x.double() @ weight.decode().double().T)
        return _exceeds(error, EXACT if dtype == torch.float32 else ROUNDED)

    return Ready(new, wrong)


def _drop_workspace(side: Side) -> None:
    """What a version keeps from call to call lies where it lies: let it be allocated anew."""
    with suppress(ImportError, AttributeError):
        side.module("quant.engines.decode").drop_workspace()


def _quantize(side: Side, *, method: str, bound: float, n: int) -> Ready:
    quantizer = _method(side, method)
    weight = _normal(n, SIZE, seed=2)

    def new(rng: Generator) -> Call:
        own = fresh(weight, rng)
        return torch.inference_mode()(lambda: quantizer.quantize(own))

    def wrong() -> str | None:
        return _exceeds(relative_error(quantizer.quantize(weight).decode(), weight.double()), bound)

    return Ready(new, wrong)


def _packing(side: Side, *, verb: str, bits: int) -> Ready:
    packing = side.module("kernels.packing")
    codes = torch.randint(1 << bits, (SIZE, SIZE), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    packed = _bytes(codes, bits)
    given, want = (codes, packed) if verb == "pack" else (packed, codes)

    def run(t: Tensor) -> Any:
        return packing.pack(t, bits) if verb == "pack" else packing.unpack(t, bits, SIZE)

    def new(rng: Generator) -> Call:
        own = fresh(given, rng)
        return torch.inference_mode()(lambda: run(own))

    def wrong() -> str | None:
        got = run(given)
        return None if torch.equal(got, want) else f"{verb} at {bits} bits: other bytes than those counted out"

    return Ready(new, wrong)


def _bytes(codes: Tensor, bits: int) -> Tensor:
    """[n, k] codes as [n, k * bits / 8] bytes, most significant bit first, bit by bit."""
    ones = (codes[..., None] >> torch.arange(bits - 1, -1, -1)) & 1
    weights = 2 ** torch.arange(7, -1, -1)
    return (ones.reshape(len(codes), -1, 8) * weights).sum(-1).to(torch.uint8)


def _exceeds(error: float, bound: float) -> str | None:
    return None if error <= bound else f"relative error {error:.3g} exceeds {bound:.3g}"
