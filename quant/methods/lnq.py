"""A learned table of levels a row, and codes by coordinate descent, both against the second moment H of the inputs.

With P the one-hot assignment of a row's weights w to its levels c, the loss is (w - P c)^T H (w - P c). Turn by turn
    levels   c = (P^T H P + eps I)^-1 (P^T H w + eps c_before), the least squares; kept where the stored c is better
    codes    each w_hat_i in turn moves to the level nearest to w_i - (1 / H_ii) sum_{j != i} H_ij (w_hat_j - w_j)
Neither can raise the loss. It starts from the exact k-means of every row, weighted by the diagonal of H.
Source: Kim et al. 2025 (GuidedQuant), arXiv 2505.07004, section 4 (LNQ); there eps c_before is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import Codebook
from quant.levels import nearest_codes, store_levels
from quant.methods.kmeans import optimal_levels

__all__ = ["LNQ", "compiled", "descend", "fit_levels", "totals"]

BLOCK = 128  # columns whose gradients are kept up to date one by one
PIECE = 1 << 24  # values of H P held at a time
RIDGE = 1e-7  # of the mean diagonal of P^T H P


@lru_cache(maxsize=1)
def compiled() -> ModuleType | None:
    """`quant.descent`, several times as fast on a CPU; None where numba cannot be imported."""
    try:
        from quant import descent
    except ImportError:
        return None
    return descent


@dataclass(frozen=True)
class LNQ(Quantizer):
    """`bits` 1..8; `turns` of levels and codes, with `passes` of coordinate descent over the columns in each.

    `damp` is the share of the mean diagonal of the second moment that is added to it.
    """

    bits: int = 3
    turns: int = 2
    passes: int = 4
    damp: float = 0.01

    source = "Kim et al. 2025 (GuidedQuant), arXiv 2505.07004, section 4 (LNQ)"
    idea = "levels by least squares, codes by coordinate descent, both weighed by the inputs"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be 1..8, got {self.bits}")
        if self.turns < 0 or self.passes < 0:
            raise ValueError(f"turns and passes must not be negative, got {self.turns} and {self.passes}")
        if not 0 <= self.damp < float("inf"):
            raise ValueError(f"damp must be a share of the mean diagonal, 0 or more, got {self.damp!r}")

    @property
    def family(self) -> str:
        return "non-uniform"

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"second_moment"}

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        assert calibration is not None
        assert calibration.second_moment is not None
        h = calibration.second_moment.to(weight.device, torch.float32, copy=True)
        diagonal = h.diagonal()
        mean = diagonal.mean()
        h = h / mean if float(mean) > 0 else torch.eye(len(h), device=h.device)
        h.diagonal().add_(self.damp)
        importance = h.diagonal().clamp(min=0).expand_as(weight).contiguous()
        levels = store_levels(optimal_levels(weight, 1 << self.bits, 1, importance), "float16")
        codes = nearest_codes(weight, levels, 1)
        for _ in range(self.turns):
            levels, codes = fit_levels(weight, h, levels, codes)
            codes = descend(weight, h, levels, codes, self.passes)
        n, k = weight.shape
        return Codebook((n, k), torch.float32, pack(codes, self.bits), levels, None, None, self.bits, "tensor", 1)


def fit_levels(weight: Tensor, h: Tensor, levels: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The best `levels` [n, L] of every row for its `codes` [n, k], ascending and as stored, and the codes of them."""
    count = levels.shape[1]
    found = torch.empty_like(levels)
    step = max(1, PIECE // (max(weight.shape[1], count) * count))
    for rows in (slice(i, i + step) for i in range(0, len(weight), step)):
        found[rows] = _fitted(weight[rows], h, levels[rows], codes[rows])
    order = found.float().argsort(dim=1, stable=True)
    return found.gather(1, order), order.argsort(dim=1).to(torch.uint8).gather(1, codes.long())


def _fitted(weight: Tensor, h: Tensor, levels: Tensor, codes: Tensor) -> Tensor:
    n, count = levels.shape
    gram = totals(h, codes, count)
    right = gram.new_zeros(n, count).scatter_add_(1, codes.long(), (weight @ h).double())  # P^T H w
    before = levels.double()
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None]
    ridge = ridge.clamp(min=torch.finfo(torch.float32).tiny)
    system = gram + torch.diag_embed(ridge.expand(n, count))
    c, failed = torch.linalg.solve_ex(system, (right + ridge * before)[..., None])
    usable = (failed == 0) & c.isfinite().all(2).all(1) & (c.abs().amax((1, 2)) <= 2 * weight.abs().amax(1))
    stored = torch.where(usable[:, None], c[..., 0], before).to(levels.dtype)

    def loss(c: Tensor) -> Tensor:
        return torch.einsum("na,nab,nb->n", c, gram, c) - 2 * (right * c).sum(1)

    better = loss(stored.double()) < loss(before)
    return torch.where(better[:, None], stored, levels)


def totals(h: Tensor, codes: Tensor, count: int) -> Tensor:
    """P^T H P [n, count, count] float64 of every row of `codes` [n, k]."""
    fast = compiled() if codes.device.type == "cpu" else None
    if fast is not None:
        return torch.from_numpy(fast.totals(h.contiguous().numpy(), codes.contiguous().numpy(), count))
    chosen = (codes.T.contiguous()[:, :, None] == torch.arange(count, device=codes.device)).float()  # [k, n, L]
    product = (h @ chosen.view(len(h), -1)).view(chosen.shape)
    return torch.einsum("kna,knb->nab", chosen, product).double()


def descend(weight: Tensor, h: Tensor, levels: Tensor, codes: Tensor, passes: int = 1) -> Tensor:
    """`codes` [n, k] after `passes` of coordinate descent over the columns; `levels` [n, L] ascending."""
    table = levels.float()
    cuts = (table[:, 1:] + table[:, :-1]) / 2
    fast = compiled() if codes.device.type == "cpu" else None
    if fast is None:
        for _ in range(passes):
            codes = _pass(weight.T, h, table.T.contiguous(), cuts.T.contiguous(), codes.T.contiguous()).T.contiguous()
        return codes
    codes = codes.clone(memory_format=torch.contiguous_format)
    gradient = table.gather(1, codes.long()).sub_(weight) @ h
    fast.settle(*(t.numpy() for t in (table, cuts, codes, gradient, h)), passes)
    return codes


def _pass(weight: Tensor, h: Tensor, table: Tensor, cuts: Tensor, codes: Tensor) -> Tensor:
    """One pass over the columns, which are rows here: `weight` and `codes` [k, n], `table` [L, n], `cuts` between."""
    error = table.gather(0, codes.long()).sub_(weight)
    for start in range(0, len(error), BLOCK):
        part = error[start : start + BLOCK]
        inside = h[start : start + BLOCK, start : start + BLOCK]
        gradient = h[start : start + BLOCK] @ error
        for i, curvature in enumerate(inside.diagonal().tolist()):
            if curvature <= 0:
                continue
            w = weight[start + i]
            target = w + part[i] - gradient[i] / curvature
            code = (target > cuts).sum(0)
            moved = table.gather(0, code[None])[0] - w
            gradient.addr_(inside[i], moved - part[i])
            part[i] = moved
            codes[start + i] = code
    return codes


register("lnq-3bit", LNQ(3))
register("lnq-2bit", LNQ(2))
