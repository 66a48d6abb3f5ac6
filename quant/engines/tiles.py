"""Dequantize a tile of rows into a reused workspace, multiply with it, go on to the next: exact, and cache-sized.

`lut` decodes several codes with one look-up: the packed codes of a row are read as indices of 8 to 16 bits into a
table that holds, for every index, the values of all codes in it. `tiled` takes every other format.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.core import QuantizedTensor
from quant.engines.base import Engine, Prepared
from quant.engines.decode import ROWS, RowDecoder
from quant.engines.rows import as_rows
from quant.formats import Affine, Codebook

__all__ = ["Lut", "Tiled"]


class _Tiles(Prepared):
    def __init__(self, decoder: RowDecoder) -> None:
        self.decoder = decoder
        self.nbytes = decoder.nbytes

    def matmul(self, x: Tensor) -> Tensor:
        n = self.decoder.shape[0]
        inner = x.to(self.decoder.dtype)
        y = inner.new_empty(x.shape[0], n)
        for start in range(0, n, ROWS):
            tile = self.decoder.rows(start, min(start + ROWS, n))
            torch.mm(inner, tile.t(), out=y[:, start : start + ROWS])
        return y.to(x.dtype)


class _Whole(Prepared):
    def __init__(self, weight: QuantizedTensor) -> None:
        self.weight = weight

    def matmul(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight.dequantize(x.dtype))


class Lut(Engine):
    """Affine and codebook weights of any width."""

    name = "lut"

    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        if device.type != "cpu":
            return f"it runs on the CPU, the weight is on {device}"
        return "" if isinstance(as_rows(weight), Affine | Codebook) else "it takes affine and codebook weights"

    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Prepared:
        rows = as_rows(weight)
        assert isinstance(rows, Affine | Codebook)
        return _Tiles(RowDecoder(rows, dtype))


class Tiled(Engine):
    """Every format: by tiles where the rows can be decoded apart, else whole."""

    name = "tiled"

    def refuses(self, weight: QuantizedTensor, dtype: torch.dtype, device: torch.device) -> str:
        return ""

    def prepare(self, weight: QuantizedTensor, dtype: torch.dtype) -> Prepared:
        return _Whole(weight)
