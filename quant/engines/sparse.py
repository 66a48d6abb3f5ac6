"""Pruned weights on the Triton kernels: each format as the arguments of its product, through their dispatcher.

Of half of every four or eight weights the places are read as they are stored; every other n of m becomes a bit mask,
one bit a weight. Values are read as they are stored too, floating or coded; only what no kernel reads (a constant added
to every value, blocks that cross rows) is decoded once to float32. Whole rows that are kept are a smaller weight of
any format: its product is scattered to all rows by `index_copy`. That passes over y once more, m * n values beside the
n * k of the weight, where a map of rows in the store would be an argument of every kernel of every format.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quant.engines.arguments import in_one_row, kept_values, plain
from quant.engines.base import Traced
from quant.formats import BitMask, Dense, KeptRows, NofM

__all__ = ["PlainRows", "Scattered", "Sparse"]


class Sparse(Traced):
    """A pruned weight [n, k] as the arguments of its product and of the kernel that decodes it."""

    def __init__(self, weight: NofM | BitMask) -> None:
        self.shape = weight.shape
        values = weight.values
        self.value, self.nbytes = (_nothing(weight), 0) if values is None else kept_values(values)
        if isinstance(weight, NofM) and weight.group in (4, 8) and 2 * weight.keep == weight.group:
            self._by_places(weight)
        else:
            self._by_mask(weight)

    def _by_places(self, weight: NofM) -> None:
        own: dict[str, Any] = {"indices": weight.indices}
        self.decoder = "n_of_m_dequantize"
        self.decoded = {**own, **self.value, "of": weight.group}
        v = self.value
        centred = v["bits"] == 4 and isinstance(v["scale"], Tensor) and v["levels"] is None and v["zero"] is None
        if weight.group == 4 and (v["bits"] == 0 or centred):
            self.product = "two_of_four_matmul"
            self.arguments = {**own, **{name: v[name] for name in ("values", "scale", "group")}}
        else:
            self.product, self.arguments = "n_of_m_matmul", self.decoded

    def _by_mask(self, weight: NofM | BitMask) -> None:
        from kernels.sparse_starts import mask_of_cells, mask_starts

        if isinstance(weight, BitMask):
            mask, starts = weight.mask, mask_starts(weight.mask, weight.shape[1])
            self.nbytes += starts.nbytes
        else:
            mask, starts = mask_of_cells(weight.positions(), weight.group, weight.shape[1])
            self.nbytes += mask.nbytes + starts.nbytes
            self.value, more = in_one_row(self.value, weight.values)
            self.nbytes += more
        own: dict[str, Any] = {"mask": mask, "starts": starts}
        value = {name: v for name, v in self.value.items() if name != "rows"}
        kept = 0 if weight.values is None else weight.values.numel
        self.decoder, self.decoded = "bitmask_dequantize", {**own, **value, "kept": kept}
        if value["bits"] == 0:
            self.product, self.arguments = "bitmask_matmul", {**own, "values": value["values"]}
        else:
            self.product = "bitmask_coded_matmul"
            self.arguments = {**own, "codes": value.pop("values"), **value, "kept": kept}

    def matmul(self, x: Tensor) -> Tensor:
        from kernels.dispatch import OPERATORS

        y: Tensor = OPERATORS[self.product].call(x, **self.arguments)
        return y

    def transposed(self, dy: Tensor) -> Tensor:
        from kernels.dispatch import OPERATORS

        w: Tensor = OPERATORS[self.decoder].call(**self.decoded, shape=self.shape, dtype=dy.dtype)
        return dy @ w


class Scattered(Traced):
    """A weight [n, k] of which whole rows are kept: `inner` is theirs, None when there is none."""

    def __init__(self, weight: KeptRows, inner: Traced | None) -> None:
        self.shape, self.inner = weight.shape, inner
        self.rows = weight.kept().nonzero()[:, 0]
        self.nbytes = self.rows.nbytes + (0 if inner is None else inner.nbytes)

    def matmul(self, x: Tensor) -> Tensor:
        y = x.new_zeros(*x.shape[:-1], self.shape[0])
        return y if self.inner is None else y.index_copy(-1, self.rows, self.inner.matmul(x))

    def transposed(self, dy: Tensor) -> Tensor:
        if self.inner is None:
            return dy.new_zeros(*dy.shape[:-1], self.shape[1])
        return self.inner.transposed(dy.index_select(-1, self.rows))


class PlainRows(Traced):
    """Rows in a floating dtype: their product is the vendor's."""

    def __init__(self, weight: Dense) -> None:
        self.values = weight.values

    def matmul(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.values.to(x.dtype))

    def transposed(self, dy: Tensor) -> Tensor:
        return dy @ self.values.to(dy.dtype)


def _nothing(weight: NofM | BitMask) -> dict[str, Any]:
    """Values where none is kept."""
    device = next(iter(weight.stored().values())).device
    return plain(torch.empty(1, 0, dtype=torch.float16, device=device))
