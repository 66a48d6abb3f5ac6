"""The code of the nearest level of a table, for values that were divided by their group's scale.

Decision thresholds are the float32 mid-points between neighbouring levels; a value exactly on one takes the lower
level, as bitsandbytes does. The range of the thresholds is cut into equal bins, at most one threshold in each: the code
of a value is that of its bin, plus one above the bin's threshold. Rounding cannot err, since values and thresholds go
through the same monotone map. It takes two look-ups in pieces that stay in the processor's cache, several times faster
than a binary search, which is left for few values and for tables with thresholds too close to separate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quant.grouping import Group, grouped, ungrouped

__all__ = ["nearest", "nearest_in_groups", "thresholds"]

PIECE = 1 << 19  # values searched at a time, see quant.rows
FEW = 1 << 12  # up to so many values the bins are not worth their making
BINS = (1 << 10, 1 << 16)  # fewest and most bins


def thresholds(levels: Tensor) -> Tensor:
    """Mid-points between neighbouring `levels` [L], ascending float32 -> [L - 1]."""
    return (levels[1:] + levels[:-1]) / 2


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """Index of the level nearest to each value of `x`; `levels` [L], L <= 256, ascending. Returns uint8 like `x`."""
    return _searcher(thresholds(levels), x.numel())(x)


def _searcher(cuts: Tensor, values: int) -> Callable[[Tensor], Tensor]:
    """The function from values to the number of `cuts` [L - 1] below each, uint8, that is quickest for so many."""
    distinct = torch.unique_consecutive(cuts)
    if values > FEW and len(distinct) > 1 and cuts.device.type == "cpu":
        low = distinct[0].clone()
        bins = BINS[0]
        while bins <= BINS[1]:
            factor = (bins - 2) / (distinct[-1] - low)
            place = _bins(distinct, low, factor, bins)
            if bool(factor.isfinite()) and bool((place[1:] > place[:-1]).all()):
                return _binned(cuts, distinct, place, low, factor, bins)
            bins *= 4
    return lambda x: torch.bucketize(x, cuts).to(torch.uint8)


def _bins(x: Tensor, low: Tensor, factor: Tensor, bins: int) -> Tensor:
    return ((x - low) * factor).clamp_(0, bins - 1).int()


def _binned(
    cuts: Tensor, distinct: Tensor, place: Tensor, low: Tensor, factor: Tensor, bins: int
) -> Callable[[Tensor], Tensor]:
    """The search by bins, where `distinct` cuts lie in the bins `place`, each alone."""
    cut = torch.full((bins,), torch.inf)
    cut[place.long()] = distinct
    upto = torch.searchsorted(cuts, distinct, right=True)  # equal cuts are passed together
    rise = torch.zeros(bins, dtype=torch.long)
    rise[place.long()] = torch.diff(upto, prepend=upto.new_zeros(1))
    base = (rise.cumsum(0) - rise).to(torch.uint8)
    after = rise.to(torch.uint8)
    single = len(cuts) == len(distinct)

    def search(x: Tensor) -> Tensor:
        index = _bins(x, low, factor, bins).flatten()
        above = torch.gt(x.flatten(), cut.index_select(0, index)).view(torch.uint8)
        if not single:
            above = above * after.index_select(0, index)
        return above.add_(base.index_select(0, index)).view(x.shape)

    return search


def nearest_in_groups(weight: Tensor, inverse: Tensor, levels: Tensor, group: Group) -> Tensor:
    """Codes [n, k] uint8 of `weight` [n, k] times `inverse`, the reciprocal scales [rows, groups] of `group`."""
    cells = grouped(weight, group).flatten(0, 1)
    per_cell = inverse.reshape(-1, 1)
    codes = torch.empty(cells.shape, dtype=torch.uint8, device=weight.device)
    search = _searcher(thresholds(levels), cells.numel())
    step = max(1, PIECE // cells.shape[1])
    for i in range(0, cells.shape[0], step):
        codes[i : i + step] = search(cells[i : i + step] * per_cell[i : i + step])
    return ungrouped(codes, (weight.shape[0], weight.shape[1]))
