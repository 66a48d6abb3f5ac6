"""Pruning with error feedback: the weights that are kept make up for those that go.

Columns are settled one by one as in `quant.feedback`. In front of every `block` columns the share `sparsity` of the
weights in them with the lowest w**2 / U_ii**2, what pruning each would cost now, is marked (of a pattern n:m, in front
of every m columns, all but n of each row); a marked weight settles at zero, and the columns behind take its error up.

Where `values` stores a scalar grid, a second sweep rounds as well: the mask stays, the grid is fitted to the kept
weights of the first sweep, and what rounding and pruning lose is fed back alike. Which group and which scale a kept
weight falls under depends on the whole mask, so it is not known before. Other values are stored after the sweep.
Source: Frantar and Alistarh 2023, arXiv 2301.00774.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, register
from quant.feedback import Choose, Feedback, check_feedback
from quant.formats import Affine, BitMask, Codebook, NofM
from quant.grid import Grid
from quant.methods.prune import keep_largest, keep_where, pattern
from quant.methods.uniform import Uniform
from quant.methods.wanda import CalibratedPruning

__all__ = ["SparseGPT"]


@dataclass(frozen=True)
class SparseGPT(CalibratedPruning):
    """`block` columns share a mask's choice; `damp` is the share of the mean diagonal added to the second moment."""

    block: int = 128
    damp: float = 0.01

    source = "Frantar and Alistarh 2023 (SparseGPT), arXiv 2301.00774"
    idea = "the weights that matter least are zero, and those that are kept make up for them"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_feedback(self.damp, self.block)
        if (at := pattern(self.sparsity)) and self.block % at[1]:
            raise ValueError(f"block must be a multiple of {at[1]} for sparsity {self.sparsity!r}, got {self.block}")

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        assert calibration is not None
        assert calibration.second_moment is not None
        feedback = Feedback.of(calibration.second_moment.to(weight.device), self.damp)
        keep, pruned = self._pruned(feedback, weight)
        if at := pattern(self.sparsity):
            sparse: BitMask | NofM = keep_largest(pruned, keep.float(), *at, self.values)
        else:
            sparse = keep_where(pruned, keep, self.values)
        if not isinstance(sparse.values, Affine | Codebook):
            return sparse
        grid = Grid.of(sparse.values)
        codes = sparse.values.unpacked()
        rounded = _in_rows(grid, codes, keep) if at else _in_line(grid, codes, keep)
        feedback.sweep(weight, rounded, self.block)
        return dataclasses.replace(sparse, values=grid.store(codes))

    def _pruned(self, feedback: Feedback, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Which weights are kept, [n, k] bool, and all as the sweep left them, [n, k]."""
        n, k = weight.shape
        keep = torch.ones(k, n, dtype=torch.bool, device=weight.device)
        cost = feedback.upper.diagonal().square()
        at = pattern(self.sparsity)

        def mark(first: int, now: Tensor) -> None:
            last = first + len(now)
            score = now.square() / cost[first:last, None]
            if at:
                order = score.argsort(dim=0, stable=True)
                keep[first:last].scatter_(0, order[: max(0, len(now) - at[0])], False)
            else:
                count = round(float(self.sparsity) * n * last) - round(float(self.sparsity) * n * first)
                keep[first:last].view(-1)[score.flatten().argsort(stable=True)[:count]] = False

        every = at[1] if at else self.block
        pruned = feedback.sweep(weight, lambda column, w: w * keep[column], self.block, mark, every)
        return keep.T.contiguous(), pruned


def _in_line(grid: Grid, codes: Tensor, keep: Tensor) -> Choose:
    """Round what is kept on a grid of [1, kept] values in row-major order, and write the codes [1, kept]."""
    place = (keep.flatten().cumsum(0) - 1).view(keep.shape)

    def choose(column: int, w: Tensor) -> Tensor:
        rows = keep[:, column].nonzero()[:, 0]
        there = place[rows, column]
        found = grid.codes(w[None, rows], there)
        codes[0, there] = found[0]
        return torch.zeros_like(w).index_copy_(0, rows, grid.values(found, there)[0])

    return choose


def _in_rows(grid: Grid, codes: Tensor, keep: Tensor) -> Choose:
    """Round what is kept on a grid of [n, kept of a row] values, and write the codes."""
    place = keep.cumsum(1) - 1

    def choose(column: int, w: Tensor) -> Tensor:
        out = torch.zeros_like(w)
        for there in place[:, column][keep[:, column]].unique().tolist():  # as many as a run keeps, or fewer
            rows = keep[:, column] & (place[:, column] == there)
            at = slice(there, there + 1)
            found = grid.codes(w[:, None], at)
            codes[:, there] = torch.where(rows, found[:, 0], codes[:, there])
            out = torch.where(rows, grid.values(found, at)[:, 0], out)
        return out

    return choose


register("sparsegpt-50", SparseGPT(0.5))
register("sparsegpt-2of4", SparseGPT("2:4"))
register("sparsegpt-2of4-int4-g64", SparseGPT("2:4", Uniform(4, 64)))
