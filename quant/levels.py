"""Tables of levels that several rows share: the nearest level to each weight, and how a learned table is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from quant.grouping import store_scale
from quant.nearest import nearest_in_groups

__all__ = ["nearest_codes", "store_levels", "tables"]


def tables(w: Tensor, rows: int) -> Tensor:
    """[n, k] -> [tables, values that share one]: the whole tensor (`rows` 0) or each run of `rows` rows.

    A short last run is filled with zeros; the number of tables is ceil(n / rows).
    """
    n, k = w.shape
    if not rows:
        return w.reshape(1, n * k)
    short = -n % rows
    return (torch.nn.functional.pad(w, (0, 0, 0, short)) if short else w).reshape(-1, rows * k)


def nearest_codes(w: Tensor, levels: Tensor, rows: int = 0) -> Tensor:
    """Codes [n, k] uint8 of the level closest to each of `w` [n, k]; `levels` [tables, L] ascending, L <= 256.

    Halfway between two levels the lower one is taken, as in `quant.nearest`.
    """
    levels = levels.float()
    if len(levels) == 1:
        return nearest_in_groups(w, w.new_ones(len(w), 1), levels[0], "channel")
    middle = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
    codes = torch.searchsorted(middle, tables(w, rows), out_int32=True)
    return codes.to(torch.uint8).reshape(-1, w.shape[1])[: w.shape[0]].contiguous()


def store_levels(levels: Tensor, how: str) -> Tensor:
    """`levels` in the dtype `how`, or in float32 where `quant.grouping.store_scale` would refuse that dtype."""
    stored = store_scale(levels.abs(), how)
    assert isinstance(stored, Tensor)
    return levels.to(stored.dtype)
