"""Rows of an affine or codebook weight, decoded by table look-up into a reused workspace.

The packed codes of a row are read as fields of `per` codes each (a byte holds two 4-bit codes; three bytes hold two
fields of four 3-bit codes). One look-up fetches the values of a whole field from a table with an entry for every
field; a pass over the tile then applies zeros and scales. In float32 the result equals `decode()` bit for bit; in
bfloat16 the values and scales are rounded to it first. Source of the idea: look-up of several codes at once as in
T-MAC, Wei et al. 2024, arXiv 2407.00088.
"""

from __future__ import annotations

import threading
from functools import lru_cache

import torch
from torch import Tensor

from quant.formats import Affine, Codebook
from quant.grouping import decode_scale, expand

__all__ = ["RowDecoder", "drop_workspace"]

TILE = 1 << 20  # weights a tile: 4 MB of float32, within the second- and third-level caches
PER_FIELD = {1: 8, 2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 7: 2, 8: 1}  # codes a field, one table for all rows
PER_FIELD_SMALL = {1: 8, 2: 4, 3: 2, 4: 2, 5: 1, 6: 1, 7: 1, 8: 1}  # tables differ by row: keep them small
ITEMS = {2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}  # moved whole, never computed with

_local = threading.local()


def _workspace(name: str, size: int, dtype: torch.dtype) -> Tensor:
    """`size` elements of a buffer that this thread reuses."""
    buffers: dict[tuple[str, torch.dtype], Tensor] = _local.__dict__.setdefault("buffers", {})
    if (name, dtype) not in buffers or buffers[name, dtype].numel() < size:
        with torch.inference_mode(False):  # one made under inference mode could not be written to outside it
            buffers[name, dtype] = torch.empty(size, dtype=dtype)
    return buffers[name, dtype][:size]


def drop_workspace() -> None:
    """Free this thread's workspace: it grows to the largest tile decoded so far, of any model."""
    _local.__dict__.pop("buffers", None)


@lru_cache
def _digits(bits: int, per: int) -> Tensor:
    """The codes in every field, [2**(bits * per), per]."""
    field = torch.arange(1 << (bits * per))[:, None]
    return (field >> (bits * torch.arange(per - 1, -1, -1))) & ((1 << bits) - 1)


class RowDecoder:
    """Decodes rows of `weight` into bfloat16 for that dtype, into float32 for any other."""

    def __init__(self, weight: Affine | Codebook, dtype: torch.dtype) -> None:
        self.weight, self.shape = weight, weight.shape
        self.dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        self.step = max(16, TILE // weight.shape[1])
        scale = None if weight.scale is None else decode_scale(weight.scale)
        self.zero: Tensor | None = None
        self.offset: Tensor | None = None
        if isinstance(weight, Affine):
            levels = torch.arange(1 << weight.bits, dtype=torch.float32)[None]
            if weight.zero is None:
                levels = levels - (1 << (weight.bits - 1))
            else:
                self.zero = decode_scale(weight.zero).to(self.dtype)
            self.rows_a_table = 0
        else:
            levels, self.rows_a_table = weight.levels.float(), weight.rows
            self.offset = None if weight.offset is None else weight.offset.to(self.dtype)
        if scale is not None and scale.numel() == 1 and self.zero is None:
            levels, scale = levels * scale, None
        self.levels = torch.nn.functional.pad(levels, (0, (1 << weight.bits) - levels.shape[1])).to(self.dtype)
        self.scale = None if scale is None else scale.to(self.dtype)
        self.per = (PER_FIELD if levels.shape[0] == 1 else PER_FIELD_SMALL)[weight.bits]
        self.table = self._table(0, 1) if levels.shape[0] == 1 else None
        kept = (self.table, self.scale, self.zero, self.levels)
        self.nbytes = sum(t.nbytes for t in kept if t is not None)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) as [stop - start, k], in a workspace that the next call of this thread overwrites."""
        m, k = stop - start, self.shape[1]
        w = self._values(start, stop)[:, :k]
        if self.zero is not None:
            self._apply(Tensor.sub_, w, self.zero, start, stop)
        if self.scale is not None:
            self._apply(Tensor.mul_, w, self.scale, start, stop)
        assert w.shape == (m, k)
        return w if self.offset is None else w.add_(self.offset)

    def _apply(self, op: object, w: Tensor, side: Tensor, start: int, stop: int) -> None:
        """`op` in place on the tile with one value of `side` a group."""
        group, part = self.weight.group, side if side.shape[0] == 1 else side[start:stop]
        k = w.shape[1]
        if isinstance(group, int) and k % group == 0:
            op(w.view(w.shape[0], -1, group), part[:, :, None])  # type: ignore[operator]
        else:
            op(w, expand(part, (w.shape[0], k), group))  # type: ignore[operator]

    def _table(self, first: int, last: int) -> Tensor:
        """Look-up tables [last - first, fields], each entry the values of a field seen as one item."""
        values = self.levels[first:last][:, _digits(self.weight.bits, self.per)]
        size = values.element_size() * self.per
        if size not in ITEMS:
            return values.reshape(-1, self.per)
        return values.contiguous().view(ITEMS[size]).reshape(-1)

    def _values(self, start: int, stop: int) -> Tensor:
        """The looked-up values of the rows, [stop - start, >= k]."""
        codes = self.weight.codes[start:stop]
        m, bits, per = stop - start, self.weight.bits, self.per
        unit = 1 if 8 % bits == 0 else bits
        if short := -codes.shape[1] % unit:
            codes = torch.nn.functional.pad(codes, (0, short))
        fields = codes.shape[1] * 8 // (bits * per)
        index = _workspace("index", m * fields, torch.int32).view(m, fields)
        _fields(codes, bits * per, unit, index)
        table = self.table
        if table is None:
            first, last = start // self.rows_a_table, (stop - 1) // self.rows_a_table + 1
            table = self._table(first, last)
            owner = torch.arange(start, stop, dtype=torch.int32) // self.rows_a_table - first
            index += owner[:, None] << (bits * per)
        out = _workspace("values", m * fields * per, self.dtype)
        into = out.view(-1, per) if table.ndim == 2 else out.view(table.dtype)
        torch.index_select(table, 0, index.view(-1), out=into)
        return out.view(m, fields * per)


def _fields(codes: Tensor, width: int, unit: int, index: Tensor) -> None:
    """Read `codes` [m, bytes] as fields of `width` bits, in units of `unit` bytes, into `index` [m, fields] int32."""
    if unit == 1 and width == 8:
        index.copy_(codes)
        return
    cells = codes.reshape(-1, unit).to(torch.int32)
    a_unit = unit * 8 // width
    into = index.view(-1, a_unit)
    for j in range(a_unit):
        begin, end = j * width, (j + 1) * width
        first, last = begin // 8, (end - 1) // 8
        field = cells[:, first] & ((1 << (8 * (first + 1) - begin)) - 1) if begin % 8 else cells[:, first].clone()
        for byte in range(first + 1, last + 1):
            field = (field << 8) | cells[:, byte]
        into[:, j] = field >> (8 * (last + 1) - end) if end % 8 else field
