"""Pruning with error feedback: the weights that are kept make up for those that go.

Columns are settled one by one as in `quant.feedback`. In front of every `block` columns the share `sparsity` of the
weights in them with the lowest w**2 / U_ii**2, what pruning each would cost now, is marked (of a pattern n:m, in front
of every m columns, all but n of each row); a marked weight settles at zero, and the columns behind take its error up.

Where `values` stores a scalar grid, what is kept is rounded in the same sweep, so that the columns behind make up for
both errors. The grid of a pattern n:m is fitted to the weights that the pattern would keep at the start (static groups:
a run of m columns always fills the same places). Of a share, the place of a kept weight, and so its scale, depends on
the whole mask: a first sweep finds the mask, the grid is fitted to what it keeps, and a second one rounds with both
given. Values without such a grid are stored after the sweep.

A weight that is kept grows to at most 1.9 times the largest of the layer at the start: where inputs are nearly alike,
making up for what goes would otherwise run away. The paper has no such bound.
Source: Frantar and Alistarh 2023, arXiv 2301.00774.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, register
from quant.feedback import Choose, Feedback, Look, check_feedback
from quant.formats import Affine, Codebook
from quant.grid import Grid
from quant.methods.prune import BF16, keep_largest, keep_where, pattern
from quant.methods.uniform import Uniform
from quant.methods.wanda import CalibratedPruning

__all__ = ["SparseGPT"]

GROWTH = 1.9  # times the largest weight that a kept one may grow to; weights that are all alike would go further


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
        weight = feedback.alive(weight)
        keep = torch.ones(weight.shape[::-1], dtype=torch.bool, device=weight.device)

        bound = GROWTH * float(weight.abs().max())

        def pruned() -> Tensor:
            mark, every = self._marker(feedback, keep)
            return feedback.sweep(
                weight, lambda column, w: w.clamp(-bound, bound) * keep[column], self.block, mark, every
            )

        if not (at := pattern(self.sparsity)):
            sparse = keep_where(pruned(), keep.T, self.values)
            if not isinstance(sparse.values, Affine | Codebook):
                return sparse
            grid, codes = Grid.of(sparse.values), sparse.values.unpacked()
            feedback.sweep(weight, _in_line(grid, codes, keep.T), self.block)
            return dataclasses.replace(sparse, values=grid.store(codes))
        start = keep_largest(weight, weight.square() / feedback.cost, *at, self.values).values
        if not isinstance(start, Affine | Codebook):
            return keep_largest(pruned(), keep.T.float(), *at, self.values)
        grid, codes = Grid.of(start), start.unpacked()
        feedback.sweep(weight, _in_rows(grid, codes, keep, *at), self.block, *self._marker(feedback, keep))
        places = keep_largest(weight, keep.T.float(), *at, BF16)
        return dataclasses.replace(places, values=grid.store(codes))

    def _marker(self, feedback: Feedback, keep: Tensor) -> tuple[Look, int]:
        """What marks in `keep` [k, n] the weights that go, and in front of every how many columns."""
        n = keep.shape[1]
        at = pattern(self.sparsity)

        def mark(first: int, now: Tensor) -> None:
            last = first + len(now)
            score = now.square() / feedback.cost[first:last, None]
            if at:
                order = score.argsort(dim=0, stable=True)
                keep[first:last].scatter_(0, order[: max(0, len(now) - at[0])], False)
            else:
                count = round(float(self.sparsity) * n * last) - round(float(self.sparsity) * n * first)
                keep[first:last].view(-1)[score.flatten().argsort(stable=True)[:count]] = False

        return mark, at[1] if at else self.block


def _in_line(grid: Grid, codes: Tensor, keep: Tensor) -> Choose:
    """Round what `keep` [n, k] keeps on a grid of [1, kept] values in row-major order, and write the codes."""
    place = (keep.flatten().cumsum(0) - 1).view(keep.shape)

    def choose(column: int, w: Tensor) -> Tensor:
        rows = keep[:, column].nonzero()[:, 0]
        there = place[rows, column]
        found = grid.codes(w[None, rows], there)
        codes[0, there] = found[0]
        return torch.zeros_like(w).index_copy_(0, rows, grid.values(found, there)[0])

    return choose


def _in_rows(grid: Grid, codes: Tensor, keep: Tensor, n: int, m: int) -> Choose:
    """Round what `keep` [k, rows] keeps on a grid with `n` values for every `m` columns, and write the codes."""

    def choose(column: int, w: Tensor) -> Tensor:
        run, inside = divmod(column, m)
        rank = keep[column - inside : column].sum(0)
        out = torch.zeros_like(w)
        for i in range(min(n, inside + 1)):
            rows = keep[column] & (rank == i)
            there = slice(run * n + i, run * n + i + 1)
            found = grid.codes(w[:, None], there)
            codes[:, there] = torch.where(rows[:, None], found, codes[:, there])
            out = torch.where(rows, grid.values(found, there)[:, 0], out)
        return out

    return choose


register("sparsegpt-50", SparseGPT(0.5))
register("sparsegpt-2of4", SparseGPT("2:4"))
register("sparsegpt-2of4-int4-g64", SparseGPT("2:4", Uniform(4, 64)))
