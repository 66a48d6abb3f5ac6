"""Inputs of the operations on a quantized weight: small ones of awkward shape, and one typical input of a given size.

The same inputs serve the agreement tests, the compile check and the micro-benchmark. They are drawn on the CPU from a
seed, so every device sees the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kernels.nested import NestedScale, Scale
from kernels.op import Example
from kernels.packing import pack

__all__ = [
    "affine_examples",
    "affine_sized",
    "codebook_examples",
    "codebook_sized",
    "pairs_examples",
    "pairs_sized",
    "w8a8_examples",
    "w8a8_sized",
]


@dataclass(frozen=True)
class Case:
    """A weight [n, k] and a batch of m rows; `scale` is the dtype of its scales, None for no scales."""

    bits: int = 4
    group: int | str = 64
    m: int = 5
    n: int = 67
    k: int = 131
    scale: torch.dtype | None = torch.float32
    rows: int = 0
    n_levels: int = 0
    zero: torch.dtype | None = None
    strided: bool = False
    nest: int = 0

    @property
    def label(self) -> str:
        """What is special about it, as in `w4-g64-5x67x131`."""
        parts = [f"w{self.bits}", f"g{self.group}" if isinstance(self.group, int) else self.group]
        parts.append(f"{self.m}x{self.n}x{self.k}")
        if self.scale is None:
            parts.append("no-scale")
        elif self.scale != torch.float32:
            parts.append(str(self.scale).removeprefix("torch."))
        parts += [f"nested{self.nest}"] * bool(self.nest)
        parts += [f"rows{self.rows}"] * bool(self.rows) + [f"levels{self.n_levels}"] * bool(self.n_levels)
        return "-".join(parts + ["zero"] * (self.zero is not None) + ["strided"] * self.strided)


COMMON = (
    *(Case(bits) for bits in range(1, 9)),
    Case(4, 32, m=1, scale=torch.float16),
    Case(4, 48, k=100),
    Case(3, "channel", m=33, scale=torch.bfloat16),
    Case(8, "tensor", n=1, k=65),
    Case(4, 64, m=17, n=129, k=64, strided=True),
    Case(2, 128, m=3, n=3, k=7, scale=torch.float16),
)
CODEBOOK = (
    *COMMON,
    Case(4, "tensor", scale=None),
    Case(3, "tensor", scale=None, rows=1),
    Case(4, 32, rows=16, n_levels=11),
    Case(5, 64, n_levels=19),
)
AFFINE = (
    *COMMON,
    Case(4, 64, zero=torch.float16),
    Case(4, 64, m=1, zero=torch.float16),
    Case(3, 32, zero=torch.float32, scale=torch.float16),
    Case(2, 48, k=100, zero=torch.float32),
    Case(8, "channel", zero=torch.float32),
    Case(4, "tensor", zero=torch.float16),
    Case(4, 128, m=33, k=300, zero=torch.float16),
)
NESTED = (
    Case(4, 64, nest=256),
    Case(4, 64, m=2, n=65, k=130, nest=7),
    Case(3, 32, m=1, nest=16),
    Case(4, 48, m=17, k=100, nest=16),
    Case(4, "channel", m=1, nest=32),
)
PAIRS = (
    *COMMON,
    *NESTED,
    Case(4, 64, m=1, k=1031),
    Case(4, "channel", m=1, n=3, k=1031, scale=torch.float16),
    Case(4, 1024, m=2, n=65, k=2048, scale=torch.float16),
    Case(4, 1024, m=1, n=65, k=2048, scale=torch.float16),
    Case(4, 7, m=3, n=33, k=75),
    Case(4, 32, n_levels=11),
)
W8A8 = (
    Case(8, 64),
    Case(8, "channel", m=33, n=129, k=65),
    Case(8, 48, m=1, k=100, scale=torch.float16),
    Case(8, "tensor", m=17, n=3, k=257),
    Case(8, 32, m=3, n=65, k=1000, strided=True),
)


def codebook_examples(dtype: torch.dtype, device: str, *, product: bool, nested: bool = False) -> Iterator[Example]:
    """Arguments of `codebook_matmul` (`product`) or `codebook_dequantize`; `nested` adds scales in nested form."""
    return (_codebook(case, dtype, device, product) for case in CODEBOOK + NESTED * nested)


def codebook_sized(m: int, n: int, k: int, dtype: torch.dtype, device: str, *, product: bool) -> Example:
    """A 4-bit codebook in groups of 64 with float16 scales."""
    return _codebook(Case(m=m, n=n, k=k, scale=torch.float16), dtype, device, product)


def pairs_examples(dtype: torch.dtype, device: str, *, product: bool) -> Iterator[Example]:
    """Arguments of `pairs_matmul` (`product`) or `pairs_dequantize`."""
    return (_pairs(case, dtype, device, product) for case in PAIRS)


def pairs_sized(m: int, n: int, k: int, dtype: torch.dtype, device: str, *, product: bool) -> Example:
    """4 bits a pair, with float16 scales of 1024 weights."""
    return _pairs(Case(4, 1024, m=m, n=n, k=k, scale=torch.float16), dtype, device, product)


def affine_examples(dtype: torch.dtype, device: str, *, product: bool, nested: bool = False) -> Iterator[Example]:
    """Arguments of `affine_matmul` (`product`) or `affine_dequantize`; `nested` adds scales in nested form."""
    return (_affine(case, dtype, device, product) for case in AFFINE + NESTED * nested)


def affine_sized(
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    device: str,
    *,
    product: bool,
    group: int | str = 64,
    zero: torch.dtype | None = None,
) -> Example:
    """4 bits with float16 scales: symmetric in groups of 64 where nothing else is said."""
    return _affine(Case(4, group, m=m, n=n, k=k, scale=torch.float16, zero=zero), dtype, device, product)


def w8a8_examples(dtype: torch.dtype, device: str) -> Iterator[Example]:
    """Arguments of `w8a8_matmul`."""
    return (_w8a8(case, dtype, device) for case in W8A8)


def w8a8_sized(m: int, n: int, k: int, dtype: torch.dtype, device: str) -> Example:
    """One scale a row of the weight."""
    return _w8a8(Case(8, "channel", m=m, n=n, k=k), dtype, device)


def _w8a8(case: Case, dtype: torch.dtype, device: str) -> Example:
    whole = _affine(case, dtype, device, product=True)
    left_out = ("zero", "bits")
    return Example(whole.label, {name: v for name, v in whole.arguments.items() if name not in left_out})


def _codebook(case: Case, dtype: torch.dtype, device: str, product: bool) -> Example:
    draw = torch.Generator().manual_seed(case.n * 1000 + case.k)
    tables = -(-case.n // case.rows) if case.rows else 1
    levels = torch.randn(tables, case.n_levels or 1 << case.bits, generator=draw).sort().values
    own: dict[str, Scale | None] = {"codes": _codes(case, levels.shape[1], draw), "levels": levels}
    own["scale"] = _scale(case, draw)
    return _example(case, own, {"rows": case.rows}, dtype, device, product, draw)


def _pairs(case: Case, dtype: torch.dtype, device: str, product: bool) -> Example:
    draw = torch.Generator().manual_seed(case.n * 1000 + case.k + 2)
    levels = torch.randn(case.n_levels or 1 << case.bits, 2, generator=draw)
    halved = replace(case, k=-(-case.k // 2))
    own: dict[str, Scale | None] = {"codes": _codes(halved, len(levels), draw), "levels": levels}
    own["scale"] = _scale(case, draw)
    return _example(case, own, {}, dtype, device, product, draw)


def _affine(case: Case, dtype: torch.dtype, device: str, product: bool) -> Example:
    draw = torch.Generator().manual_seed(case.n * 1000 + case.k + 1)
    own: dict[str, Scale | None] = {"codes": _codes(case, 1 << case.bits, draw), "scale": _scale(case, draw)}
    own["zero"] = None
    if case.zero is not None:
        own["zero"] = (torch.rand(*_sides(case), generator=draw) * ((1 << case.bits) - 1)).to(case.zero)
    return _example(case, own, {}, dtype, device, product, draw)


def _example(
    case: Case,
    tensors: dict[str, Scale | None],
    settings: dict[str, Any],
    dtype: torch.dtype,
    device: str,
    product: bool,
    draw: torch.Generator,
) -> Example:
    if product:
        x = torch.randn(case.m, case.k, generator=draw).to(dtype)
        tensors = {"x": x.T.contiguous().T if case.strided else x, **tensors}
    else:
        settings = {**settings, "shape": (case.n, case.k), "dtype": dtype}
    placed = {name: None if t is None else t.to(device) for name, t in tensors.items()}
    return Example(case.label, {**placed, **settings, "bits": case.bits, "group": case.group})


def _codes(case: Case, below: int, draw: torch.Generator) -> Tensor:
    return pack(torch.randint(below, (case.n, case.k), generator=draw, dtype=torch.uint8), case.bits)


def _sides(case: Case) -> tuple[int, int]:
    if isinstance(case.group, int):
        return case.n, -(-case.k // case.group)
    return (case.n, 1) if case.group == "channel" else (1, 1)


def _scale(case: Case, draw: torch.Generator) -> Scale | None:
    if case.scale is None:
        return None
    sides = _sides(case)
    if case.nest:
        codes = torch.randint(256, sides, generator=draw, dtype=torch.uint8)
        levels = torch.linspace(-1, 1, 256)
        blocks = torch.rand(-(-codes.numel() // case.nest), generator=draw)
        return NestedScale(codes, levels, blocks, torch.tensor([1.5]), case.nest)
    scale = torch.rand(*sides, generator=draw) + 0.1
    if scale.numel() > 1:
        scale[0, -1] = 0  # the scale of a group of zeros
    return scale.to(case.scale)
