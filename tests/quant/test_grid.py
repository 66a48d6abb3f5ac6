"""The grid of a quantized weight holds the values that its format decodes to."""

from __future__ import annotations

import pytest
import torch

from quant import METHODS, UnsupportedError
from quant.formats import Affine, Codebook
from quant.grid import Grid
from tests.quant.samples import gaussian, quantize

N, K = 12, 192
SCALAR = [
    name
    for name, method in METHODS.items()
    if not method.needs and isinstance(q := method.quantize(gaussian(N, K)), Affine | Codebook) and q.scale is not None
]


@pytest.mark.parametrize("method", SCALAR)
def test_values_of_its_own_codes_are_the_decoded_weight(method: str) -> None:
    q = quantize(method, gaussian(N, K))
    grid = Grid.of(q)
    assert torch.equal(grid.values(q.unpacked()), q.decode())
    columns = torch.tensor([3, 190, 64])
    assert torch.equal(grid.values(q.unpacked()[:, columns], columns), q.decode()[:, columns])
    assert torch.equal(grid.store(q.unpacked()).decode(), q.decode())


@pytest.mark.parametrize("method", SCALAR)
def test_no_value_of_the_grid_is_nearer_than_the_nearest(method: str) -> None:
    q = quantize(method, gaussian(N, K))
    grid = Grid.of(q)
    w = gaussian(N, K, seed=1)
    error = (grid.nearest(w) - w).abs()
    for code in range(grid.bottom, 1 << q.bits):
        if isinstance(q, Affine) or code < q.levels.shape[1]:
            other = grid.values(torch.full((N, K), code, dtype=torch.uint8))
            assert bool((error <= (other - w).abs() + 1e-6 * w.abs().max()).all())


def test_a_format_without_a_scalar_grid_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="'bitmask' is no scalar grid"):
        Grid.of(METHODS["prune-50"].quantize(gaussian(4, 8)))
