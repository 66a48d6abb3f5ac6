"""The values that a quantized weight can take, one set for every weight: what rounding chooses from.

Methods that choose codes by more than the distance (error feedback, coordinate descent, a search of scales) work on the
grid of any scalar format. For a weight [n, k] the grid of column j is, by row, either whole numbers times a scale
(`Affine`) or a table of levels times a scale (`Codebook`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import QuantizedTensor, UnsupportedError
from quant.formats import Affine, Codebook
from quant.grouping import decode_scale, expand, inverse_of

__all__ = ["Grid"]


@dataclass(frozen=True, eq=False)
class Grid:
    """`like` is the weight whose scales, zeros and levels are kept; `scale`, `inverse`, `zero` [n or 1, k or 1].

    Of a codebook, `cuts` [n or 1, L - 1] lie between its sorted levels and `order` [n or 1, L] are their codes.
    """

    like: Affine | Codebook
    scale: Tensor | None
    inverse: Tensor | None
    zero: Tensor | None
    cuts: Tensor | None = None
    order: Tensor | None = None

    @classmethod
    def of(cls, weight: QuantizedTensor) -> Grid:
        """The grid of an affine or codebook weight; UnsupportedError for other formats."""
        if not isinstance(weight, Affine | Codebook) or (isinstance(weight, Codebook) and weight.offset is not None):
            raise UnsupportedError(f"format {weight.format!r} is no scalar grid: affine and codebook weights are")
        scale = inverse = zero = None
        if weight.scale is not None:
            stored = decode_scale(weight.scale)
            scale = expand(stored, weight.shape, weight.group)
            inverse = expand(inverse_of(stored), weight.shape, weight.group)
        if isinstance(weight, Affine):
            half = torch.full((1, 1), float(1 << (weight.bits - 1)), device=weight.codes.device)
            zero = half if weight.zero is None else expand(decode_scale(weight.zero), weight.shape, weight.group)
            return cls(weight, scale, inverse, zero)
        levels, order = weight.levels.float().sort(1)  # some tables have an order of their own
        cuts = (levels[:, 1:] + levels[:, :-1]) / 2
        if weight.rows:
            cuts, order = (t.repeat_interleave(weight.rows, 0)[: weight.shape[0]] for t in (cuts, order))
        return cls(weight, scale, inverse, zero, cuts.contiguous(), order.to(torch.uint8))

    def codes(self, w: Tensor, columns: slice | Tensor = slice(None)) -> Tensor:
        """Codes, uint8, of the values nearest to `w` [n, c], which stands for `columns` of the weight."""
        inverse = _columns(self.inverse, columns)
        scaled = w if inverse is None else w * inverse
        if isinstance(self.like, Affine):
            zero = _columns(self.zero, columns)
            assert zero is not None
            return (scaled + zero).round_().clamp_(self.bottom, (1 << self.like.bits) - 1).to(torch.uint8)
        assert self.cuts is not None
        assert self.order is not None
        if len(self.cuts) == 1:
            place = torch.bucketize(scaled.contiguous(), self.cuts[0], out_int32=True)
            return self.order[0].index_select(0, place.flatten()).view(place.shape)
        place = torch.searchsorted(self.cuts, scaled.contiguous())
        return self.order.gather(1, place)

    @property
    def bottom(self) -> int:
        """The lowest code that is used: the most negative one of a symmetric grid is not, as in `Uniform`."""
        return self.like.bottom if isinstance(self.like, Affine) else 0

    def values(self, codes: Tensor, columns: slice | Tensor = slice(None)) -> Tensor:
        """What `codes` [n, c] of `columns` stand for, [n, c] float32; as `decode` of the format computes it."""
        if isinstance(self.like, Affine):
            zero = _columns(self.zero, columns)
            assert zero is not None
            w = codes.float() - zero
        else:
            levels = self.like.levels.float()
            if len(levels) == 1:
                w = levels[0].index_select(0, codes.flatten().int()).view(codes.shape)
            else:
                w = levels.repeat_interleave(self.like.rows, 0)[: len(codes)].gather(1, codes.long())
        scale = _columns(self.scale, columns)
        return w if scale is None else w * scale

    def nearest(self, w: Tensor, columns: slice | Tensor = slice(None)) -> Tensor:
        """The values of the grid nearest to `w` [n, c], which stands for `columns`."""
        return self.values(self.codes(w, columns), columns)

    def store(self, codes: Tensor) -> QuantizedTensor:
        """The weight of these `codes` [n, k] uint8, with the grid's scales, zeros and levels."""
        return dataclasses.replace(self.like, codes=pack(codes.contiguous(), self.like.bits))


def _columns(side: Tensor | None, columns: slice | Tensor) -> Tensor | None:
    return side if side is None or side.shape[1] == 1 else side[:, columns]
