"""Block-sparse weights with values of every kind, and an x or dy: small ones of awkward shape, and typical ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from kernels.nested import NestedScale
from kernels.op import Example
from kernels.packing import pack
from kernels.sparse_starts import mask_starts

__all__ = ["blocks_examples", "blocks_sized"]

NEST = 5  # scales that share an entry


@dataclass(frozen=True)
class Case:
    """A weight [n, k] of which the share `density` of the blocks is kept, and m rows of x or dy.

    `values` are "plain", on an "affine" or a "zeroed" grid, of a table ("levels"), of one table for `rows` blocks, or
    of a table without scales ("bare"); codes have `bits`. The scales are nested where `nested` says so.
    """

    values: str = "plain"
    m: int = 5
    n: int = 67
    k: int = 131
    block: tuple[int, int] = (16, 16)
    bits: int = 4
    group: int | str = 64
    rows: int = 0
    nested: bool = False
    strided: bool = False
    density: float = 0.5

    @property
    def label(self) -> str:
        """What is special about it, as in `16x16-affine-w4-g64-5x67x131`."""
        group = f"g{self.group}" if isinstance(self.group, int) else self.group
        coded = [] if self.values == "plain" else [f"w{self.bits}", group]
        parts = ["x".join(map(str, self.block)), self.values, *coded, f"{self.m}x{self.n}x{self.k}"]
        parts += [f"rows{self.rows}"] * bool(self.rows) + ["nested"] * self.nested + ["strided"] * self.strided
        return "-".join(parts + [f"density{self.density}"] * (self.density != 0.5))


CASES = (
    Case(),
    Case(m=1),
    Case(m=1, n=67, k=1031),
    Case(m=33, n=67, k=1031),
    Case(m=2, n=3, k=7, block=(8, 8)),
    Case(m=17, n=129, k=65, block=(32, 16), strided=True),
    Case(m=1, n=1, k=1, block=(8, 8), density=1.0),
    Case(m=1, n=70, k=200, block=(1, 8)),
    Case(m=3, n=70, k=200, block=(1, 8)),
    Case(m=3, n=70, k=100, block=(8, 1)),
    Case(m=1, n=70, k=100, block=(8, 1)),
    Case(m=5, n=130, k=300, block=(64, 64)),
    Case(m=1, n=130, k=300, block=(64, 64)),
    Case("affine", block=(8, 8)),
    Case("affine", m=1, block=(8, 8)),
    Case("affine", m=1, k=1031, block=(8, 8)),
    Case("affine", m=33, k=1031, block=(8, 8)),
    Case("zeroed", m=1, bits=3, group=16),
    Case("zeroed", m=5, bits=3, group=10),
    Case("zeroed", m=2, bits=8, group="channel", block=(8, 8)),
    Case("levels", m=1, group=32, nested=True),
    Case("levels", m=4, group=32, nested=True, block=(4, 32)),
    Case("levels", m=3, bits=5, group="tensor", block=(8, 8)),
    Case("bare", m=2, bits=2, group="tensor", block=(8, 8)),
    Case("bare", m=1, bits=4, group="tensor", block=(8, 8)),
    Case("levels", m=6, rows=3, block=(8, 8)),
    Case("levels", m=1, rows=1, block=(8, 8)),
    *(Case(values, m=m, block=(8, 8), density=d) for values, d in (("plain", 0.0), ("affine", 1.0)) for m in (1, 5)),
)


def blocks_examples(dtype: torch.dtype, device: str, *, what: str) -> Iterator[Example]:
    """Arguments of `blocks_matmul`, `blocks_grad` or `blocks_dequantize`; for that, one of those that differ in x."""
    apart = CASES if what != "dequantize" else tuple(dict.fromkeys(replace(c, m=0, strided=False) for c in CASES))
    return (_example(case, dtype, device, what) for case in apart)


def blocks_sized(m: int, n: int, k: int, dtype: torch.dtype, device: str, *, what: str) -> Example:
    """Half of the blocks of 16 x 16 weights, in the dtype of x."""
    return _example(Case(m=m, n=n, k=k), dtype, device, what)


def _example(case: Case, dtype: torch.dtype, device: str, what: str) -> Example:
    draw = torch.Generator().manual_seed(case.n * 1000 + case.k + 3)
    (height, width), n, k = case.block, case.n, case.k
    keep = torch.rand(-(-n // height), -(-k // width), generator=draw) < case.density
    if case.density == 0.5:
        keep[0, 0] = True
        if len(keep) > 1:
            keep[-1] = False  # rows of which nothing is kept
    mask = pack(keep.to(torch.uint8), 1)
    own: dict[str, Any] = {"mask": mask, "starts": mask_starts(mask, keep.shape[1], 8)}
    own |= _values(case, (int(keep.sum()), height * width), dtype, draw)
    plain = case.values == "plain"
    settings: dict[str, Any] = {"block": case.block, "bits": 0 if plain else case.bits, "rows": case.rows}
    settings["group"] = "tensor" if plain else case.group
    if what == "dequantize":
        settings |= {"shape": (n, k), "dtype": dtype}
    else:
        x = torch.randn(case.m, k if what == "matmul" else n, generator=draw).to(dtype)
        own = {"x" if what == "matmul" else "dy": x.T.contiguous().T if case.strided else x, **own}
        settings |= {"n": n} if what == "matmul" else {"k": k}
    placed = {name: None if value is None else value.to(device) for name, value in own.items()}
    return Example(case.label, {**placed, **settings})


def _values(case: Case, shape: tuple[int, int], dtype: torch.dtype, draw: torch.Generator) -> dict[str, Any]:
    """Values, levels, scale and zero of kept blocks of `shape`."""
    sides: dict[str, Any] = {"levels": None, "scale": None, "zero": None}
    if case.values == "plain":
        return {"values": torch.randn(*shape, generator=draw).to(dtype), **sides}
    size = 1 << case.bits
    codes = torch.randint(size, shape, generator=draw, dtype=torch.int32).to(torch.uint8)
    if case.values in ("levels", "bare"):
        tables = -(-shape[0] // case.rows) if case.rows else 1
        sides["levels"] = torch.randn(tables, size, generator=draw).sort(-1).values
    groups = -(-shape[1] // case.group) if isinstance(case.group, int) else 1
    count = 1 if case.group == "tensor" else shape[0]
    if case.values != "bare":
        sides["scale"] = torch.rand(count, groups, generator=draw) + 0.1
        if case.nested:
            second = torch.rand(-(-count * groups // NEST), generator=draw) + 0.5
            nested = torch.randint(256, (count, groups), generator=draw, dtype=torch.int32).to(torch.uint8)
            sides["scale"] = NestedScale(nested, torch.linspace(-1, 1, 256), second, torch.tensor([2.0]), NEST)
    if case.values == "zeroed":
        sides["zero"] = torch.rand(count, groups, generator=draw) * (size - 1)
    return {"values": pack(codes, case.bits), **sides}
