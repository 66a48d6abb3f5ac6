"""The matrix of rank r that is nearest to E [n, k] in the Frobenius norm (Eckart & Young 1936), as two factors.

Of matrices whose shorter side is at most `EXACT`, the leading eigenvectors V of E^T E (or E E^T) are found by LAPACK,
and E V V^T is the answer whatever the rounding of V. Of larger ones, V comes from a block Krylov space of `PRODUCTS`
products with E and its transpose (Musco & Musco 2015, arXiv 1504.05477): on white noise, whose spectrum has no gaps and
which is the hardest case, the energy found is within 0.3 % of the optimum, and much nearer for spectra that fall.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nearest_of_rank"]

EXACT = 2048
PRODUCTS = 24
SPARE = 8  # columns of a block beyond the rank
NOTHING = 1e-6  # of the largest singular value: below it there is only rounding


def nearest_of_rank(e: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B [n, s] and A [s, k], s <= rank: B A is the nearest to `e`, and column i of B is as long as row i of A.

    Singular values that are rounding noise are left out, so s may be 0.
    """
    if not e.numel():
        return e.new_zeros(e.shape[0], 0), e.new_zeros(0, e.shape[1])
    if e.shape[0] < e.shape[1]:
        a, b = nearest_of_rank(e.T, rank)
        return b.T, a.T
    v = _leading(e, min(rank, e.shape[1]))
    u, s, w = torch.linalg.svd(e @ v, full_matrices=False)
    kept = s > NOTHING * s[0]
    root = s[kept].sqrt()
    return u[:, kept] * root, (root[:, None] * w[kept]) @ v.T


def _leading(e: Tensor, rank: int) -> Tensor:
    """Orthonormal [k, rank] that spans the leading right singular vectors of `e` [n, k], n >= k."""
    k = e.shape[1]
    if k <= EXACT:
        gram = (e.T @ e).cpu().numpy()
        from scipy.linalg import eigh  # not before use: importing the package must not need it

        found = torch.from_numpy(eigh(gram, subset_by_index=[k - rank, k - 1], overwrite_a=True)[1])
        return found.to(e).contiguous()
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(k, rank + SPARE, generator=generator).to(e)
    blocks = []
    for _ in range(PRODUCTS // 2):
        block = torch.linalg.qr(e.T @ (e @ block))[0]
        blocks.append(block)
    space = torch.linalg.qr(torch.cat(blocks, 1))[0]
    _, _, w = torch.linalg.svd(e @ space, full_matrices=False)
    out: Tensor = space @ w[:rank].T
    return out
