"""The Pareto front: the points that no other point beats in one coordinate without losing in the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["pareto_front"]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, loss), both to be small, that are not dominated, by rising cost.

    Equal points are all on the front or all off it.
    """
    order = sorted(range(len(points)), key=lambda i: points[i])
    front: list[int] = []
    best = math.inf
    for i in order:
        cost, loss = points[i]
        if loss < best:
            best = loss
            front.append(i)
        elif loss == best and front and points[front[-1]] == (cost, loss):
            front.append(i)
    return front
