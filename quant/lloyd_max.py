"""Optimal levels of a density in one dimension (Lloyd-Max), some of which may be held where they are.

minimise  sum_i int_{cell i} (u - c_i)**2 g(u) du,   cells cut halfway between neighbouring levels
gradient  2 (c_i m_i - s_i), m_i and s_i the zeroth and first moment of cell i; the Hessian is tridiagonal:
          H_ii = 2 m_i - (g(t_i) (c_i+1 - c_i) + g(t_i-1) (c_i - c_i-1)) / 2,  H_i,i+1 = -g(t_i) (c_i+1 - c_i) / 2

Newton's step is taken where it keeps the levels in order and moves them little, Lloyd's (each level to the mean of its
cell) elsewhere. The start has levels at even steps of the integral of g**(1/3) (Panter and Dite 1951), between
those that are held. Two densities: the normal one, and that of weights over the absolute maximum of their block.
Sources: Max 1960, IRE Trans. Inf. Theory 6(1); Lloyd 1982, IEEE Trans. Inf. Theory 28(2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["AbsmaxRatio", "Density", "Normal", "gaussian_levels", "lloyd_max", "moments"]

Floats = NDArray[np.floating[Any]]

STEPS = 500
NODES = 400  # of the quadrature over the block's maximum; 200 and 800 give the same levels to 1e-13
ENOUGH = 1e-13  # largest move of a level in a Newton step at which it stops


class Density(Protocol):
    """A density g on [low, high], not necessarily of integral one; integrals run from `low`."""

    @property
    def low(self) -> float:
        """Where g begins."""

    @property
    def high(self) -> float:
        """Where g ends."""

    def at(self, u: Floats) -> Floats:
        """g at `u`."""

    def integrals(self, u: Floats) -> tuple[Floats, Floats, Floats]:
        """The integrals of g, u g and u**2 g up to `u`, each less a constant."""


def ndtr(x: Floats) -> Floats:
    """P(N(0, 1) < x)."""
    from scipy.special import ndtr as phi  # not before use: importing the package must not need it

    return np.asarray(phi(x))


def ndtri(p: float) -> float:
    """The x with P(N(0, 1) < x) = `p`."""
    from scipy.special import ndtri as quantile

    return float(quantile(p))


def _phi(x: Floats) -> Floats:
    return np.asarray(np.exp(-x * x / 2) / np.sqrt(2 * np.pi))


@dataclass(frozen=True)
class Normal:
    """N(0, 1); the line is cut at 12, beyond which there is 1e-33 of it."""

    low: float = -12.0
    high: float = 12.0

    def at(self, u: Floats) -> Floats:
        return _phi(u)

    def integrals(self, u: Floats) -> tuple[Floats, Floats, Floats]:
        return ndtr(u), -_phi(u), ndtr(u) - u * _phi(u)


@lru_cache(maxsize=32)
def _maxima(block: int) -> tuple[Floats, Floats]:
    """Quadrature of E[a**2 h(a)] over a = max|w| of `block` values of N(0, 1): nodes and weights."""
    low = ndtri((1 + np.exp(np.log(1e-18) / block)) / 2)  # P(a < low) = 1e-18
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    half = (12.0 - low) / 2
    a = low + half * (nodes + 1)
    log_inside = np.log1p(-2 * ndtr(-a))  # P(|w| < a)
    return a, half * weights * 2 * block * _phi(a) * np.exp((block - 1) * log_inside) * a**2


@dataclass(frozen=True)
class AbsmaxRatio:
    """u = w / max|w| of blocks of N(0, 1) without the largest value itself, weighted by max|w|**2.

    Given the maximum a the others are normal and cut at +-a: g(u) = E[a**2 a phi(a u) / (2 Phi(a) - 1)]. The integral
    of (u - c)**2 g is the mean squared error of the weights, but for the factor (block - 1) / block.
    """

    block: int
    low: float = -1.0
    high: float = 1.0

    def _mixture(self) -> tuple[Floats, Floats]:
        a, weights = _maxima(self.block)
        return a[:, None], (weights / (1 - 2 * ndtr(-a)))[:, None]

    def at(self, u: Floats) -> Floats:
        a, weights = self._mixture()
        return np.asarray((weights * a * _phi(a * u)).sum(0))

    def integrals(self, u: Floats) -> tuple[Floats, Floats, Floats]:
        a, weights = self._mixture()
        v = a * u
        mass, slope = ndtr(v), _phi(v)
        return (
            (weights * mass).sum(0),
            (weights * -slope / a).sum(0),
            (weights * (mass - v * slope) / a**2).sum(0),
        )


def moments(g: Density, levels: Floats) -> tuple[Floats, Floats, float]:
    """Zeroth and first moments [L] of the cells of `levels` [L] ascending, and the total squared error."""
    edges = np.concatenate([[g.low], (levels[1:] + levels[:-1]) / 2, [g.high]])
    mass, first, second = (np.diff(t) for t in g.integrals(edges))
    return mass, first, float((second - 2 * levels * first + levels**2 * mass).sum())


def lloyd_max(g: Density, count: int, held: Mapping[int, float] | None = None) -> Floats:
    """`count` levels, ascending float64, of least squared error under `g`; those of index i stay at `held`[i]."""
    held = held or {}
    levels = _start(g, count, held)
    free = ~np.isin(np.arange(count), list(held))
    for _ in range(STEPS):
        mass, first, _ = moments(g, levels)
        mean = np.where(free, first / mass, levels)
        newton = _newton(g, levels, free, mass, first)
        ordered = bool((np.diff(newton) > 0).all()) and g.low <= newton[0] and newton[-1] <= g.high
        near = np.abs(newton - levels).max() < 2 * count**2 * np.abs(mean - levels).max()
        move = np.abs(newton - levels).max() if ordered and near else np.inf
        levels = newton if ordered and near else mean
        if move < ENOUGH:
            break
    return levels


def _newton(g: Density, levels: Floats, free: NDArray[np.bool_], mass: Floats, first: Floats) -> Floats:
    """`levels` after a full Newton step of the `free` ones."""
    coupling = g.at((levels[1:] + levels[:-1]) / 2) * np.diff(levels) / 2
    bands = np.zeros((3, len(levels)))
    bands[0, 1:] = -coupling * free[:-1]
    bands[1] = np.where(free, 2 * mass - np.append(coupling, 0) - np.insert(coupling, 0, 0), 1.0)
    bands[2, :-1] = -coupling * free[1:]
    gradient = np.where(free, 2 * (levels * mass - first), 0.0)
    from scipy.linalg import solve_banded  # not before use: importing the package must not need it

    return np.asarray(levels - solve_banded((1, 1), bands, gradient))


def _start(g: Density, count: int, held: Mapping[int, float]) -> Floats:
    """First levels [count]: those between two that are held are spread by g**(1/3)."""
    fine = np.linspace(max(g.low, -8.0), min(g.high, 8.0), 1 << 14)
    rise = np.cbrt(g.at(fine))
    levels = np.empty(count)
    for (i, low), (j, high) in pairwise([(-1, g.low), *sorted(held.items()), (count, g.high)]):
        inside = (fine > low) & (fine < high)
        if j - i > 1:
            total = np.cumsum(rise[inside])
            levels[i + 1 : j] = np.interp(np.arange(1, j - i) / (j - i) * total[-1], total, fine[inside])
        if j < count:
            levels[j] = high
    return levels


@lru_cache(maxsize=16)
def gaussian_levels(bits: int) -> Floats:
    """Lloyd-Max levels of N(0, 1), [2**bits] float64 ascending, symmetric to the last digit."""
    levels = lloyd_max(Normal(), 1 << bits)
    levels = (levels - levels[::-1]) / 2
    levels.flags.writeable = False
    return levels
