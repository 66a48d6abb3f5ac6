"""One choice for every item, of least total damage within a budget of size: the multiple-choice knapsack problem.

    minimise sum_i damage[i, c_i]   subject to   sum_i size[i, c_i] <= budget

`choose` solves it to the optimum by branch and bound (scipy's HiGHS). `bound` is the Lagrangian one, no assignment
within the budget is below it: max over m >= 0 of sum_i min_c (damage[i, c] + m size[i, c]) - m budget (Sinha and
Zoltners 1979, Operations Research 27(3)). The two differ by less than what one item can gain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["bound", "choose"]

Floats = NDArray[np.floating[Any]]
Whole = NDArray[np.int64]


def choose(damage: Floats, size: Whole, budget: int) -> list[int]:
    """The choice of each item; `damage` [items, choices] finite, `size` [items, choices] whole numbers.

    Raises ValueError where even the smallest choices exceed the budget.
    """
    items, choices = damage.shape
    least = int(size.min(1).sum())
    if least > budget:
        raise ValueError(f"the smallest choices take {least}, more than the budget of {budget}")
    every = np.arange(items)
    known = [np.full(items, c) for c in range(choices) if int(size[:, c].sum()) <= budget]
    known.append(size.argmin(1))
    worth = damage / (np.abs(damage).max() or 1.0)
    allowed = budget
    while True:
        found = _solve(worth, size, allowed)
        excess = 0 if found is None else int(size[every, found].sum()) - budget
        if excess <= 0:
            break
        allowed -= excess  # the solver's tolerance on a constraint is relative
    known += [] if found is None else [found]
    best = min(known, key=lambda picks: float(damage[every, picks].sum()))
    return [int(c) for c in best]


def _solve(worth: Floats, size: Whole, budget: int) -> Whole | None:
    """The optimum as the solver sees it, None where it finds none."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # not before use: importing the package must not need it
    from scipy.sparse import block_diag

    items, choices = worth.shape
    unit = max(1.0, float(size.max()))
    one_each = LinearConstraint(block_diag([np.ones((1, choices))] * items), 1, 1)
    fits = LinearConstraint(size.reshape(1, -1) / unit, ub=budget / unit)
    scale = 1e4 * items  # the solver stops at an absolute gap of 1e-6
    done = milp(
        scale * worth.ravel(),
        integrality=np.ones(worth.size),
        bounds=Bounds(0, 1),
        constraints=[one_each, fits],
        options={"mip_rel_gap": 0.0},
    )
    picks: Whole | None = None if done.x is None else done.x.reshape(items, choices).argmax(1)
    return picks


def bound(damage: Floats, size: Whole, budget: int) -> float:
    """The Lagrangian lower bound of the least damage within `budget`."""
    from scipy.optimize import minimize_scalar

    def dual(log_price: float) -> float:
        price = np.exp(log_price)
        return float((damage + price * size).min(1).sum() - price * budget)

    free = float(damage.min(1).sum())
    top = np.log(max(float(np.ptp(damage)), 1e-300) * len(damage) + 1e-300)
    found = minimize_scalar(lambda p: -dual(p), bounds=(top - 60, top + 1), method="bounded", options={"xatol": 1e-9})
    return max(free, float(-found.fun))
