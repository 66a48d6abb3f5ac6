"""Decode a tile of rows into a reused workspace, multiply with it, go on to the next: exact, and cache-sized.

`lut` takes affine and codebook weights, decoded by look-up; `tiled` takes every format: by look-up where it can,
else dequantized whole at every call. Of a weight whose codes are in an entropy code it keeps the packed codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.core import QuantizedTensor
from quant.engines.base import Engine, Prepared
from quant.engines.decode import RowDecoder
from quant.engines.plain import Dequantized
from quant.engines.rows import as_rows
from quant.formats import Affine, Codebook
from quant.formats.coded import plain

__all__ = ["Lut", "Tiled"]


class _Tiles(Prepared):
    def __init__(self, decoder: RowDecoder, dtype: torch.dtype) -> None:
        self.decoder, self.nbytes = decoder, decoder.nbytes
        self.dtype = torch.float64 if dtype == torch.float64 else decoder.dtype  # float16 is multiplied in float32

    def tile(self, start: int, stop: int) -> Tensor:
        return self.decoder.rows(start, stop).to(self.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        n, step = self.decoder.shape[0], self.decoder.step
        inner = x.to(self.dtype)
        if step >= n:
            return torch.mm(inner, self.tile(0, n).t()).to(x.dtype)
        y = inner.new_empty(x.shape[0], n)
        for start in range(0, n, step):
            stop = min(start + step, n)
            y[:, start:stop] = torch.mm(inner, self.tile(start, stop).t())
        return y.to(x.dtype)

    def transposed(self, dy: Tensor) -> Tensor:
        n, step = self.decoder.shape[0], self.decoder.step
        inner = dy.to(self.dtype)
        dx = inner.new_zeros(dy.shape[0], self.decoder.shape[1], dtype=torch.promote_types(self.dtype, torch.float32))
        for start in range(0, n, step):
            stop = min(start + step, n)
            dx += torch.mm(inner[:, start:stop], self.tile(start, stop))
        return dx.to(dy.dtype)


class Lut(Engine):
    """Affine and codebook weights of any width, on the CPU."""

    name = "lut"

    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        if device.type != "cpu":
            return f"it runs on the CPU, the weight is on {device}"
        return "" if isinstance(as_rows(weight), Affine | Codebook) else "it takes affine and codebook weights"

    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Prepared:
        rows = as_rows(weight)
        assert isinstance(rows, Affine | Codebook)
        return _Tiles(RowDecoder(rows, dtype), dtype)


class Tiled(Engine):
    """Every format, on every device."""

    name = "tiled"

    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        return ""

    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Prepared:
        packed = plain(weight)
        rows = as_rows(packed)
        if isinstance(rows, Affine | Codebook) and rows.codes.device.type == "cpu":
            ready: Prepared = _Tiles(RowDecoder(rows, dtype), dtype)
        else:
            ready = Dequantized(packed)
        if packed is not weight:
            stored = {t.data_ptr() for t in weight.stored().values()}
            ready.nbytes += sum(t.nbytes for t in packed.stored().values() if t.data_ptr() not in stored)
        return ready
