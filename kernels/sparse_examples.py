"""Sparse weights with an x: small ones of awkward shape, and one typical input of a given size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.op import Example
from kernels.packing import pack
from kernels.sparse_starts import mask_starts

__all__ = ["bitmask_examples", "bitmask_sized", "two_of_four_examples", "two_of_four_sized"]


@dataclass(frozen=True)
class Case:
    """A weight [n, k] and m rows of x. `values` is the dtype of the kept weights (None: that of x), or of the scales of
    4-bit codes in groups of `group`; `density` is the share of weights that a bit mask keeps.
    """

    m: int = 5
    n: int = 67
    k: int = 131
    values: torch.dtype | None = None
    group: int | str = 0
    strided: bool = False
    density: float = 0.5

    @property
    def label(self) -> str:
        """What is special about it, as in `g64-5x67x131`."""
        parts = [f"g{self.group}" if isinstance(self.group, int) else self.group] if self.group else []
        parts += [f"{self.m}x{self.n}x{self.k}"]
        parts += [str(self.values).removeprefix("torch.")] if self.values else []
        parts += [f"density{self.density}"] * (self.density != 0.5)
        return "-".join(parts + ["strided"] * self.strided)


SHARED = (
    Case(),
    Case(m=1),
    Case(m=33, n=67, k=1031),
    Case(m=1, n=67, k=1031),
    Case(m=2, n=3, k=7, values=torch.float32),
    Case(m=17, n=129, k=64, values=torch.float16, strided=True),
    Case(m=3, n=65, k=2100, strided=True),
    Case(m=1, n=1, k=1),
)
PAIRS = (
    *SHARED,
    Case(group=64),
    Case(m=1, group=64),
    Case(m=1, n=17, k=1000, group=32, values=torch.float16),
    Case(m=3, group="tensor"),
    Case(m=6, n=33, k=100, group=6),
    Case(m=1, group="channel"),
    Case(group="channel", n=1),
    Case(m=1, group=7),
)
MASKS = (*SHARED, *(Case(m=m, density=density) for m in (1, 5) for density in (0.0, 0.1, 1.0)))


def two_of_four_examples(dtype: torch.dtype, device: str) -> Iterator[Example]:
    """Arguments of `two_of_four_matmul`."""
    return (_pairs(case, dtype, device) for case in PAIRS)


def two_of_four_sized(m: int, n: int, k: int, dtype: torch.dtype, device: str) -> Example:
    """Kept weights in the dtype of x."""
    return _pairs(Case(m, n, k), dtype, device)


def bitmask_examples(dtype: torch.dtype, device: str) -> Iterator[Example]:
    """Arguments of `bitmask_matmul`."""
    return (_mask(case, dtype, device) for case in MASKS)


def bitmask_sized(m: int, n: int, k: int, dtype: torch.dtype, device: str) -> Example:
    """Half of the weights kept, in the dtype of x."""
    return _mask(Case(m, n, k), dtype, device)


def _pairs(case: Case, dtype: torch.dtype, device: str) -> Example:
    draw = torch.Generator().manual_seed(case.n * 1000 + case.k)
    cells = -(-case.k // 4)
    six = torch.tensor([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]], dtype=torch.uint8)
    places = six[torch.randint(6, (case.n, cells), generator=draw)].flatten(1)
    values, scale = _values(case, (case.n, 2 * cells), dtype, draw)
    own = {"x": _x(case, dtype, draw), "indices": pack(places, 2), "values": values, "scale": scale}
    return _example(case, own, {"group": case.group or "tensor"}, device)


def _mask(case: Case, dtype: torch.dtype, device: str) -> Example:
    draw = torch.Generator().manual_seed(case.n * 1000 + case.k + 1)
    keep = torch.rand(case.n, case.k, generator=draw) < case.density
    if case.density == 0.5:
        keep[-1] = False  # a row of which nothing is kept
    mask = pack(keep.to(torch.uint8), 1)
    values, _ = _values(case, (1, int(keep.sum())), dtype, draw)
    own = {"x": _x(case, dtype, draw), "mask": mask, "starts": mask_starts(mask, case.k), "values": values}
    return _example(case, own, {}, device)


def _values(
    case: Case, shape: tuple[int, int], dtype: torch.dtype, draw: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    if not case.group:
        return torch.randn(*shape, generator=draw).to(case.values or dtype), None
    codes = pack(torch.randint(16, shape, generator=draw, dtype=torch.uint8), 4)
    if isinstance(case.group, int):
        sides = (shape[0], -(-shape[1] // case.group))
    else:
        sides = (shape[0] if case.group == "channel" else 1, 1)
    scale = torch.rand(*sides, generator=draw) + 0.1
    return codes, scale.to(case.values or torch.float32)


def _x(case: Case, dtype: torch.dtype, draw: torch.Generator) -> Tensor:
    x = torch.randn(case.m, case.k, generator=draw).to(dtype)
    return x.T.contiguous().T if case.strided else x


def _example(case: Case, own: Mapping[str, Tensor | None], settings: Mapping[str, Any], device: str) -> Example:
    placed = {name: None if t is None else t.to(device) for name, t in own.items()}
    return Example(case.label, {**placed, **settings})
