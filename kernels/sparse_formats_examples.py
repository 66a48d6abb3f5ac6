"""Sparse weights with values of every kind, and an x: small ones of awkward shape, a typical one of a given size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from kernels.nested import NestedScale, Scale
from kernels.op import Example
from kernels.packing import pack
from kernels.sparse_starts import mask_starts

__all__ = ["bitmask_examples", "bitmask_sized", "n_of_m_examples", "n_of_m_sized"]

NEST = 5  # scales that share an entry


@dataclass(frozen=True)
class Case:
    """A weight [n, k], of which half of every `of` weights are kept or the share `density`, and m rows of x.

    `values` are "plain", on an "affine" or a "zeroed" grid, of a table ("levels"), of one table for `rows` rows, or of
    a table without scales ("bare"); codes have `bits`. The scales are nested where `nested` says so.
    """

    values: str = "levels"
    m: int = 5
    n: int = 67
    k: int = 131
    of: int = 8
    bits: int = 4
    group: int | str = 16
    rows: int = 0
    nested: bool = False
    strided: bool = False
    density: float = 0.5

    @property
    def label(self) -> str:
        """What is special about it, as in `8-affine-w4-g16-5x67x131`."""
        group = f"g{self.group}" if isinstance(self.group, int) else self.group
        coded = [] if self.values == "plain" else [f"w{self.bits}", group]
        parts = [str(self.of), self.values, *coded, f"{self.m}x{self.n}x{self.k}"]
        parts += [f"rows{self.rows}"] * bool(self.rows) + ["nested"] * self.nested + ["strided"] * self.strided
        return "-".join(parts + [f"density{self.density}"] * (self.density != 0.5))


SHARED = (
    Case("plain"),
    Case("plain", m=1),
    Case("levels"),
    Case("levels", m=1),
    Case("affine", m=1, k=1031, group=64),
    Case("affine", m=33, k=1031, group=64),
    Case("zeroed", m=1, bits=3, group=10),
    Case("zeroed", m=5, bits=3, group=10),
    Case("levels", m=1, nested=True),
    Case("affine", m=17, n=3, k=700, nested=True),
    Case("bare", m=2, bits=5, group="tensor"),
    Case("bare", m=1, bits=2, group="tensor"),
    Case("affine", m=3, bits=8, group="channel", strided=True),
    Case("affine", m=1, bits=6, group="tensor"),
    Case("zeroed", m=3, k=600, bits=5, group=6),
    Case("levels", m=2, k=600, group=7),
    Case("zeroed", m=2, n=1, k=1),
)
CELLS = (
    *(replace(case, of=of) for of in (4, 8) for case in SHARED),
    Case("levels", m=1, rows=2),
    Case("levels", m=6, rows=30, of=4),
)
MASKS = (
    *(case for case in SHARED if case.values != "plain"),
    *(Case("affine", m=m, density=d) for m in (1, 5) for d in (0.0, 0.1, 1.0)),
)
PLAIN_MASKS = tuple(Case("plain", n=n, k=k, density=d) for n, k, d in ((67, 1031, 0.5), (3, 7, 0.1), (1, 600, 1.0)))


def n_of_m_examples(dtype: torch.dtype, device: str, *, product: bool) -> Iterator[Example]:
    """Arguments of `n_of_m_matmul` (`product`) or `n_of_m_dequantize`."""
    return (_cells(case, dtype, device, product) for case in _once(CELLS, product))


def n_of_m_sized(m: int, n: int, k: int, dtype: torch.dtype, device: str, *, product: bool) -> Example:
    """Four of eight weights kept, in the dtype of x."""
    return _cells(Case("plain", m, n, k), dtype, device, product)


def bitmask_examples(dtype: torch.dtype, device: str, *, product: bool) -> Iterator[Example]:
    """Arguments of `bitmask_coded_matmul` (`product`) or `bitmask_dequantize`."""
    cases = MASKS if product else (*PLAIN_MASKS, *MASKS)
    return (_mask(case, dtype, device, product) for case in _once(cases, product))


def bitmask_sized(m: int, n: int, k: int, dtype: torch.dtype, device: str, *, product: bool) -> Example:
    """Half of the weights kept: for a product codes of a table in groups of 64, else in the dtype of x."""
    return _mask(Case("levels" if product else "plain", m, n, k, group=64), dtype, device, product)


def _once(cases: tuple[Case, ...], product: bool) -> tuple[Case, ...]:
    """For a decoder, one of the cases that differ in x alone."""
    return cases if product else tuple(dict.fromkeys(replace(case, m=0, strided=False) for case in cases))


def _cells(case: Case, dtype: torch.dtype, device: str, product: bool) -> Example:
    draw = torch.Generator().manual_seed(case.n * 1000 + case.k)
    cells = -(-case.k // case.of)
    choices = torch.tensor(list(combinations(range(case.of), case.of // 2)), dtype=torch.uint8)
    places = choices[torch.randint(len(choices), (case.n, cells), generator=draw)].flatten(1)
    own = {"indices": pack(places, (case.of - 1).bit_length())}
    values = _values(case, (case.n, places.shape[1]), dtype, draw)
    settings = {"of": case.of, **_settings(case), "rows": case.rows}
    return _example(case, {**own, **values}, settings, dtype, device, product, draw)


def _mask(case: Case, dtype: torch.dtype, device: str, product: bool) -> Example:
    draw = torch.Generator().manual_seed(case.n * 1000 + case.k + 1)
    keep = torch.rand(case.n, case.k, generator=draw) < case.density
    if case.density == 0.5 and case.n > 1:
        keep[-1] = False  # a row of which nothing is kept
    if case.density:
        keep[0, 0] = True
    mask = pack(keep.to(torch.uint8), 1)
    kept = int(keep.sum())
    values: dict[str, Any] = _values(case, (1, max(1, kept)), dtype, draw)
    if product:
        values = {"codes": values.pop("values"), **values}
    own = {"mask": mask, "starts": mask_starts(mask, case.k), **values}
    settings = {"kept": max(1, kept), **_settings(case)}
    return _example(replace(case, of=0), own, settings, dtype, device, product, draw)


def _settings(case: Case) -> Mapping[str, Any]:
    plain = case.values == "plain"
    return {"bits": 0 if plain else case.bits, "group": "tensor" if plain else case.group}


def _values(case: Case, shape: tuple[int, int], dtype: torch.dtype, draw: torch.Generator) -> dict[str, Any]:
    """Values, levels, scale and zero of kept weights of `shape`."""
    sides: dict[str, Any] = {"levels": None, "scale": None, "zero": None}
    if case.values == "plain":
        return {"values": torch.randn(*shape, generator=draw).to(dtype), **sides}
    size = 1 << case.bits
    codes = torch.randint(size, shape, generator=draw, dtype=torch.int32).to(torch.uint8)
    if case.values in ("levels", "bare"):
        tables = -(-shape[0] // case.rows) if case.rows else 1
        sides["levels"] = torch.randn(tables, size, generator=draw).sort(-1).values
    groups = -(-shape[1] // case.group) if isinstance(case.group, int) else 1
    rows = 1 if case.group == "tensor" else shape[0]
    if case.values != "bare":
        scale: Scale = torch.rand(rows, groups, generator=draw) + 0.1
        if case.nested:
            blocks = -(-rows * groups // NEST)
            second = torch.rand(blocks, generator=draw) + 0.5
            nested = torch.randint(256, (rows, groups), generator=draw, dtype=torch.int32).to(torch.uint8)
            scale = NestedScale(nested, torch.linspace(-1, 1, 256), second, torch.tensor([2.0]), NEST)
        sides["scale"] = scale
    if case.values == "zeroed":
        sides["zero"] = torch.rand(rows, groups, generator=draw) * (size - 1)
    return {"values": pack(codes, case.bits), **sides}


def _example(
    case: Case,
    own: Mapping[str, Any],
    settings: Mapping[str, Any],
    dtype: torch.dtype,
    device: str,
    product: bool,
    draw: torch.Generator,
) -> Example:
    placed = {name: None if value is None else value.to(device) for name, value in own.items()}
    if not product:
        return Example(case.label, {**placed, "shape": (case.n, case.k), **settings, "dtype": dtype})
    x = torch.randn(case.m, case.k, generator=draw).to(dtype).to(device)
    return Example(case.label, {"x": x.T.contiguous().T if case.strided else x, **placed, **settings})
