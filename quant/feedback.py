"""Error feedback: columns of a weight are settled one by one, and those not settled yet make up for the error.

What a layer loses is the sum over its rows of e H e^T, e = w - w_hat, with H the second moment of its inputs. With
H^-1 = U^T U and U upper triangular, settling column i at q_i and moving the later ones to their optimum is

    e_i = (w_i - q_i) / U_ii,    w_j -= e_i U_ij for j > i,    and the loss grows by e_i**2

Errors reach the columns behind a block in one product, when the block is done. H is damped: a share of the mean of its
diagonal is added to it. Inputs that are always zero (dead) leave their weights free: those are set to zero.
Sources: Frantar et al. 2022 (GPTQ), arXiv 2210.17323; the loss in closed form: Chee et al. 2023 (QuIP), arXiv
2307.13304.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Choose", "Feedback", "Look", "check_feedback"]

Choose = Callable[[int, Tensor], Tensor]  # a column and its weights [n] now -> the values [n] it settles at
Look = Callable[[int, Tensor], None]  # the first of some columns and their weights [c, n] now


@dataclass(frozen=True, eq=False)
class Feedback:
    """`upper` is U [k, k] float32 of the columns in the order in which they are settled, `order` [k]; `dead` [k]."""

    upper: Tensor
    order: Tensor
    dead: Tensor

    @classmethod
    def of(cls, second_moment: Tensor, damp: float = 0.01, act_order: bool = False) -> Feedback:
        """The feedback for inputs of `second_moment` [k, k]; `act_order` settles columns of large inputs first.

        A second moment that rounding left indefinite is damped ten times as much until it is not.
        """
        h = second_moment.double()
        diagonal = h.diagonal()
        dead = diagonal <= 0
        order = torch.arange(len(h), device=h.device)
        if act_order:
            order = diagonal.argsort(descending=True, stable=True)
        h = h[order][:, order].masked_fill_(dead[order][:, None] | dead[order], 0.0)
        mean = diagonal[~dead].mean() if bool((~dead).any()) else diagonal.new_ones(())
        h.diagonal()[dead[order]] = mean
        eye = torch.eye(len(h), dtype=h.dtype, device=h.device)
        failed = True
        while failed:
            # seen from the last column, H = L L^T; turned round again, L is U^-1
            lower, info = torch.linalg.cholesky_ex((h + damp * mean * eye).flip(0, 1))
            failed, damp = bool(info), max(10 * damp, 1e-12)
        upper = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
        return cls(upper.float(), order, dead)

    @property
    def cost(self) -> Tensor:
        """[k], in that order: a column settled at q costs (w - q)**2 / cost."""
        return self.upper.diagonal().square()

    def alive(self, weight: Tensor) -> Tensor:
        """`weight` [n, k] with zeros in the columns of dead inputs."""
        return weight.masked_fill(self.dead, 0.0)

    def sweep(
        self, weight: Tensor, choose: Choose, block: int = 128, look: Look | None = None, every: int = 1
    ) -> Tensor:
        """`weight` [n, k] with every column as `choose(column, w)` settled it.

        Before each column whose place in the order is a multiple of `every`, `look` sees what stands there and in the
        columns that follow, `every` in all or as many as the block has left.
        """
        columns = self.order.tolist()
        w = self.alive(weight).T[self.order].contiguous()  # columns lie together
        for start in range(0, len(w), block):
            now, u = w[start : start + block], self.upper[start : start + block]
            inside, errors = u[:, start : start + block], torch.empty_like(now)
            steps = inside.diagonal().tolist()
            for i, step in enumerate(steps):
                if look is not None and (start + i) % every == 0:
                    look(start + i, now[i : i + every])
                settled = choose(columns[start + i], now[i])
                error = torch.div(now[i] - settled, step, out=errors[i])
                now[i + 1 :].addr_(inside[i, i + 1 :], error, alpha=-1)
                now[i] = settled
            w[start + block :].addmm_(u[:, start + block :].T, errors, alpha=-1)
        out = torch.empty_like(weight)
        out[:, self.order] = w.T
        return out


def check_feedback(damp: float, block: int) -> None:
    """Raise ValueError unless `damp` is a share that is not negative and `block` a positive integer."""
    if not 0 <= damp < float("inf"):
        raise ValueError(f"damp must be a share of the mean diagonal, 0 or more, got {damp!r}")
    if block < 1:
        raise ValueError(f"block must be a positive number of columns, got {block!r}")
