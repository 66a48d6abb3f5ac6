"""Weights to quantize: random ones of awkward shape with a group of zeros and a large weight, or of a given size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.op import Example

__all__ = [
    "affine_examples",
    "affine_sized",
    "codebook_examples",
    "codebook_sized",
    "mxfp4_examples",
    "mxfp4_sized",
    "nested_examples",
    "nested_sized",
]


@dataclass(frozen=True)
class Case:
    """A weight [n, k], and how it is to be quantized; the group that begins at `zeros` is all zeros."""

    bits: int = 4
    group: int | str = 64
    n: int = 5
    k: int = 200
    stored: torch.dtype = torch.float32
    zero: str | None = None
    n_levels: int = 0

    @property
    def label(self) -> str:
        """What is special about it, as in `w4-g64-5x200-float16`."""
        group = f"g{self.group}" if isinstance(self.group, int) else self.group
        parts = [f"w{self.bits}", group, f"{self.n}x{self.k}"]
        parts += [str(self.stored).removeprefix("torch.")] * (self.stored != torch.float32)
        parts += [self.zero or ""] * bool(self.zero) + [f"levels{self.n_levels}"] * bool(self.n_levels)
        return "-".join(str(part) for part in parts)


SHARED = (
    *(Case(bits) for bits in range(2, 9)),
    Case(4, 64, n=3, k=64, stored=torch.float16),
    Case(4, 48, n=17, k=127, stored=torch.bfloat16),
    Case(3, 17, n=3, k=65),
    Case(4, "channel", n=63, k=1),
    Case(3, "channel", n=3, k=1000, stored=torch.float16),
    Case(8, "tensor", n=17, k=63),
    Case(5, "channel", n=2, k=5000),
    Case(4, 4608, n=2, k=9000),
)
ZEROS = tuple(
    Case(bits, group, n=n, k=k, stored=stored, zero=zero)
    for zero in ("integer", "float")
    for bits, group, n, k, stored in (
        (4, 64, 5, 200, torch.float16),
        (3, 32, 3, 1000, torch.float32),
        (8, "channel", 5, 127, torch.float16),
        (2, 17, 3, 65, torch.float32),
        (4, "tensor", 3, 17, torch.float32),
    )
)
TABLES = (Case(1), Case(4, n_levels=11), Case(5, 64, n_levels=19), Case(8, 96, n_levels=200), Case(2, n_levels=1))


def codebook_examples(dtype: torch.dtype, device: str) -> Iterator[Example]:
    """Arguments of `codebook_quantize`."""
    return (_codebook(case, dtype, device) for case in (*SHARED, *TABLES))


def codebook_sized(m: int, n: int, k: int, dtype: torch.dtype, device: str) -> Example:
    """16 levels in groups of 64 with float32 scales."""
    return _codebook(Case(n=n, k=k), dtype, device)


def affine_examples(dtype: torch.dtype, device: str) -> Iterator[Example]:
    """Arguments of `affine_quantize`."""
    return (_affine(case, dtype, device) for case in (*SHARED, *ZEROS))


def affine_sized(m: int, n: int, k: int, dtype: torch.dtype, device: str) -> Example:
    """Symmetric 4 bits in groups of 64 with float16 scales."""
    return _affine(Case(n=n, k=k, stored=torch.float16), dtype, device)


def mxfp4_examples(dtype: torch.dtype, device: str) -> Iterator[Example]:
    """Arguments of `mxfp4_quantize`."""
    cases = (Case(group=32), Case(group=32, n=3, k=64), *(case for case in SHARED if case.bits == 4))
    return (_mxfp4(case, dtype, device) for case in cases)


def mxfp4_sized(m: int, n: int, k: int, dtype: torch.dtype, device: str) -> Example:
    """Groups of 32."""
    return _mxfp4(Case(group=32, n=n, k=k), dtype, device)


def nested_examples(dtype: torch.dtype, device: str) -> Iterator[Example]:
    """Arguments of `nested_quantize`; scales are float32 whatever `dtype` is."""
    for n, k, block in ((1, 1, 256), (3, 17, 256), (17, 65, 256), (5, 127, 64), (1, 1000, 256)):
        yield Example(f"{n}x{k}-b{block}", _nested(n, k, block, device))


def nested_sized(m: int, n: int, k: int, dtype: torch.dtype, device: str) -> Example:
    """The scales of a weight [n, k] in groups of 64."""
    return Example(f"{n}x{-(-k // 64)}-b256", _nested(n, -(-k // 64), 256, device))


def _codebook(case: Case, dtype: torch.dtype, device: str) -> Example:
    draw = torch.Generator().manual_seed(case.bits)
    levels = torch.rand(case.n_levels or 1 << case.bits, generator=draw).mul(2).sub(1).sort().values.to(device)
    own = {"levels": levels, "bits": case.bits, "group": case.group, "stored": case.stored}
    return Example(case.label, {"weight": _weight(case, dtype, device), **own})


def _affine(case: Case, dtype: torch.dtype, device: str) -> Example:
    own = {"bits": case.bits, "group": case.group, "zero": case.zero, "stored": case.stored}
    return Example(case.label, {"weight": _weight(case, dtype, device), **own})


def _mxfp4(case: Case, dtype: torch.dtype, device: str) -> Example:
    return Example(case.label, {"weight": _weight(case, dtype, device), "group": case.group})


def _weight(case: Case, dtype: torch.dtype, device: str) -> Tensor:
    draw = torch.Generator().manual_seed(case.n * 1000 + case.k)
    weight = torch.randn(case.n, case.k, generator=draw)
    size = case.group if isinstance(case.group, int) else case.k
    weight[-1, -(case.k % size or size) :] = 0  # the last group, short where k asks for it
    weight[0, -1] += 5
    return weight.to(dtype).to(device)


def _nested(n: int, k: int, block: int, device: str) -> dict[str, object]:
    draw = torch.Generator().manual_seed(n * 1000 + k)
    scale = torch.randn(n, k, generator=draw).exp().to(device)
    levels = torch.randn(256, generator=draw).sort().values
    levels = (levels / levels.abs().max()).to(device)
    return {"scale": scale, "offset": scale.mean()[None], "levels": levels, "block": block}
