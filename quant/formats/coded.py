"""Codes in an entropy code: a stream of bits whose length follows from how often each code occurs.

`Symbols` are whole numbers in such a stream, `CodedCodebook` is a codebook weight with its codes so stored. A stream
can only be read from the first symbol to the last, so whoever multiplies with the weight first takes `plain`, the same
weight with packed codes, and keeps that.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from kernels.packing import pack
from quant import ans, huffman
from quant.core import QuantizedTensor, UnsupportedError
from quant.formats.codebook import Codebook, FixedCodebook
from quant.formats.reshaped import Reshaped
from quant.grouping import Group
from quant.stream import Stream

__all__ = ["CODERS", "Coded", "CodedCodebook", "CodedFixedCodebook", "Symbols", "check_coder", "coded", "plain"]

CODERS = {"huffman": huffman, "ans": ans}
TABLES = {"huffman": torch.uint8, "ans": torch.int16}


def check_coder(coder: str) -> None:
    """Raise ValueError unless `coder` is one of `CODERS`."""
    if coder not in CODERS:
        raise ValueError(f"coder must be one of {', '.join(CODERS)}, got {coder!r}")


@dataclass(frozen=True, eq=False)
class Symbols(QuantizedTensor, format="symbols"):
    """Whole numbers 0 .. 2**bits - 1, [n, k] in row-major order, as `coder` wrote them; see `quant.stream.Stream`.

    `data` uint8; `starts` int32, or int64 in a stream of more than 2**32 bits, read as unsigned; `table` [<= 2**bits]
    uint8 lengths or int16 frequencies.
    """

    data: Tensor
    starts: Tensor
    table: Tensor
    coder: str
    bits: int

    stored_parts = {"data": "codes", "starts": "codes", "table": "codes"}

    def __post_init__(self) -> None:
        check_coder(self.coder)
        want = ((torch.uint8,), (torch.int32, torch.int64), (TABLES[self.coder],))
        for name, dtypes in zip(("data", "starts", "table"), want, strict=True):
            t = getattr(self, name)
            if t.ndim != 1 or t.dtype not in dtypes:
                raise ValueError(f"{name} must be 1-D of {dtypes[0]}, got {t.dtype} {list(t.shape)}")
        if not 1 <= self.bits <= 8 or len(self.table) > 1 << self.bits:
            raise ValueError(f"a table of {len(self.table)} symbols does not fit in {self.bits} bits (1..8)")

    @classmethod
    def store(cls, values: Tensor, bits: int, coder: str) -> Symbols:
        """Encode `values` [n, k], whole numbers below 2**bits; symbols above the largest are not in the table."""
        check_coder(coder)
        stream = CODERS[coder].encode(values.to(torch.uint8).cpu().numpy(), bits)
        used = int(stream.table.nonzero()[0].max(initial=0)) + 1
        signed = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}
        arrays = [stream.data, stream.starts, np.ascontiguousarray(stream.table[:used])]
        data, starts, table = (torch.from_numpy(a.view(signed[a.itemsize])).to(values.device) for a in arrays)
        return cls((values.shape[0], values.shape[1]), torch.float32, data, starts, table, coder, bits)

    def symbols(self) -> Tensor:
        """The numbers [n, k] uint8; ValueError for a stream that is damaged."""
        unsigned = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
        stored = (t.detach().cpu().numpy() for t in (self.data, self.starts, self.table))
        data, starts, table = (a.view(unsigned[a.itemsize]) for a in stored)
        stream = Stream(data, starts, table, self.shape[0] * self.shape[1])
        return torch.from_numpy(CODERS[self.coder].decode(stream)).to(self.data.device).view(self.shape)

    def decode(self) -> Tensor:
        return self.symbols().float()


@dataclass(frozen=True, eq=False)
class Coded(QuantizedTensor):
    """A weight whose codes are read in order; `decode` is that of `plain`."""

    @abstractmethod
    def plain(self) -> Codebook:
        """The same weight with packed codes."""

    def decode(self) -> Tensor:
        return self.plain().decode()


@dataclass(frozen=True, eq=False)
class CodedCodebook(Coded, format="coded-codebook"):
    """A `Codebook` with `codes` [n, k] in an entropy code; `bits` are those that the packed code would take."""

    codes: Symbols
    levels: Tensor
    scale: Tensor | QuantizedTensor | None
    offset: Tensor | None
    bits: int
    group: Group
    rows: int

    stored_parts: ClassVar[Mapping[str, str]] = {**Codebook.stored_parts, "codes": "inherit"}
    packed: ClassVar[type[Codebook]] = Codebook

    def __post_init__(self) -> None:
        if not isinstance(self.codes, Symbols) or self.codes.shape != self.shape:
            raise ValueError(f"codes must be symbols {list(self.shape)}, got {self.codes}")

    @classmethod
    def store(cls, weight: Codebook, coder: str) -> CodedCodebook:
        """`weight` with its codes encoded by `coder`."""
        values = {f.name: getattr(weight, f.name) for f in dataclasses.fields(weight)}
        return cls(**values | {"codes": Symbols.store(weight.unpacked(), weight.bits, coder)})

    def plain(self) -> Codebook:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return self.packed(**values | {"codes": pack(self.codes.symbols(), self.bits)})


@dataclass(frozen=True, eq=False)
class CodedFixedCodebook(CodedCodebook, format="coded-fixed-codebook"):
    """A coded codebook whose table the method fixes."""

    stored_parts = {**CodedCodebook.stored_parts, "levels": "constants"}
    packed = FixedCodebook


def coded(weight: QuantizedTensor, coder: str) -> QuantizedTensor:
    """`weight` with the codes of its codebook in an entropy code; UnsupportedError for a format without one."""
    if isinstance(weight, Codebook):
        return (CodedFixedCodebook if isinstance(weight, FixedCodebook) else CodedCodebook).store(weight, coder)
    if isinstance(weight, Reshaped):
        return dataclasses.replace(weight, inner=coded(weight.inner, coder))
    raise UnsupportedError(f"format {weight.format!r} has no codebook whose codes could be coded by {coder!r}")


def plain(weight: QuantizedTensor) -> QuantizedTensor:
    """`weight` with packed codes in place of coded ones, however deep; itself where there are none."""
    if isinstance(weight, Coded):
        return weight.plain()
    inner = {name: value for name, value in weight.fields().items() if isinstance(value, QuantizedTensor)}
    made = {name: plain(value) for name, value in inner.items()}
    if all(made[name] is inner[name] for name in inner):
        return weight
    return dataclasses.replace(weight, **cast("dict[str, Any]", made))
