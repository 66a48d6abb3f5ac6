"""What the grid of a scalar format would leave of a weight at other scales than its own.

    error[group] = sum_i h_i (w_i - s q_i)**2    q = what the code nearest to w / s stands for, in units of the scale

Zero points and levels are kept. A few rows are taken at a time, so that what is computed stays in the caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.formats import Affine, Codebook
from quant.grouping import decode_scale, grouped, inverse_of
from quant.nearest import nearest

__all__ = ["Trial"]

PIECE = 1 << 19  # weights compared at a time


@dataclass(frozen=True, eq=False)
class Trial:
    """`cells` [n, groups, size] are the weights, `h` [n or 1, groups, size] their importance, zero where filled in.

    Of a codebook `levels` [tables, L] are sorted; `zero` [n or 1, groups, 1] is an affine format's.
    """

    like: Affine | Codebook
    cells: Tensor
    h: Tensor
    levels: Tensor | None
    zero: Tensor | None

    @classmethod
    def of(cls, like: Affine | Codebook, weight: Tensor, h: Tensor) -> Trial:
        """For `weight` [n, k] of importance `h` [n or 1, k], non-negative, on the grid of `like`."""
        group = "channel" if like.group == "tensor" else like.group
        levels = zero = None
        if isinstance(like, Codebook):
            levels = like.levels.float().sort(1).values
        else:
            half = torch.full((1, 1), float(1 << (like.bits - 1)), device=weight.device)
            zero = (half if like.zero is None else decode_scale(like.zero))[..., None]
        return cls(like, grouped(weight, group), grouped(h, group), levels, zero)

    def error(self, scale: Tensor) -> Tensor:
        """The error of each group at `scale` [rows, groups]; not finite where the scale is not."""
        return self._summed(scale, lambda w, h, q, s: [(q.mul_(s).sub_(w).square_() * h).sum(-1)])[0]

    def least_squares(self, scale: Tensor) -> Tensor:
        """The best scale [rows, groups] for the codes nearest at `scale`: sum h w q / sum h q**2, or `scale` itself."""
        above, below = self._summed(scale, lambda w, h, q, s: [(h * w * q).sum(-1), (h * q.square()).sum(-1)])
        return torch.where(below > 0, above / below, scale)

    def better(self, best: Tensor, error: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """`best` and its `error`, with those groups of `scale` that leave less."""
        tried = self.error(scale)
        less = tried < error
        return torch.where(less, scale, best), torch.where(less, tried, error)

    def _summed(self, scale: Tensor, terms: object) -> list[Tensor]:
        n, groups, _ = self.cells.shape
        by_row = scale.expand(n, groups)
        parts = []
        for rows in self._pieces():
            w, h = self.cells[rows], self.h if len(self.h) == 1 else self.h[rows]
            s = by_row[rows, :, None]
            q = self._quanta(w * inverse_of(s), rows)
            parts.append(torch.stack(terms(w, h, q, s)))  # type: ignore[operator]
        found = torch.cat(parts, 1)
        return list(found.sum((1, 2))[:, None, None] if self.like.group == "tensor" else found)

    def _pieces(self) -> Iterator[slice]:
        n = len(self.cells)
        step = max(1, PIECE // self.cells[0].numel())
        return (slice(i, min(i + step, n)) for i in range(0, n, step))

    def _quanta(self, x: Tensor, rows: slice) -> Tensor:
        """What the codes nearest to `x` [r, groups, size], weights over their scale, stand for."""
        if self.zero is not None:
            assert isinstance(self.like, Affine)
            zero = self.zero if len(self.zero) == 1 else self.zero[rows]
            return x.add_(zero).round_().clamp_(self.like.bottom, (1 << self.like.bits) - 1).sub_(zero)
        assert isinstance(self.like, Codebook)
        assert self.levels is not None
        if len(self.levels) == 1:
            place = nearest(x, self.levels[0])
            return self.levels[0].index_select(0, place.flatten().int()).view(x.shape)
        levels = self.levels[torch.arange(rows.start, rows.stop, device=x.device) // self.like.rows]
        flat = x.flatten(1)
        cuts = (levels[:, 1:] + levels[:, :-1]) / 2
        return levels.gather(1, torch.searchsorted(cuts, flat)).view(x.shape)
