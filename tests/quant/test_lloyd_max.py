"""Optimal levels of a density: the published values for the normal one, and the conditions of an optimum for any."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from quant.entropy import entropy
from quant.lloyd_max import AbsmaxRatio, Normal, gaussian_levels, lloyd_max, moments
from quant.methods.gaussian import LloydMax

ERRORS = {1: 0.3633802276, 2: 0.1174818478, 3: 0.0345477608, 4: 0.0095010080, 5: 0.0025046684}
ENTROPIES = {1: 1.0000, 2: 1.9111, 3: 2.8249, 4: 3.7653, 5: 4.7298}  # of the cells' probabilities, in bits
POSITIVE = {
    1: [0.79788456],
    2: [0.45278003, 1.5104176],
    3: [0.24509418, 0.75600528, 1.3439093, 2.1519457],
    4: [0.12839503, 0.3880483, 0.65675912, 0.94234046, 1.2562312, 1.6180464, 2.0690172, 2.7325896],
}


@pytest.mark.parametrize("bits", ERRORS)
def test_error_on_the_normal_distribution(bits: int) -> None:
    assert moments(Normal(), gaussian_levels(bits))[2] == pytest.approx(ERRORS[bits], abs=1e-10)  # ten digits given


@pytest.mark.parametrize("bits", ENTROPIES)
def test_entropy_of_the_cells(bits: int) -> None:
    mass = moments(Normal(), gaussian_levels(bits))[0]
    assert mass.sum() == pytest.approx(1, abs=1e-12)
    assert -(mass * np.log2(mass)).sum() == pytest.approx(ENTROPIES[bits], abs=5e-5)  # four digits given


@pytest.mark.parametrize("bits", ENTROPIES)
def test_codes_of_a_sample_have_that_entropy_and_error(bits: int) -> None:
    """2 M weights: four standard errors, of .0007 bits at most of entropy and of 0.2 % of squared error."""
    w = torch.randn(1024, 2048, generator=torch.Generator().manual_seed(0))
    q = LloydMax("tensor", "float32", bits).quantize(w)
    assert entropy(q.unpacked()) == pytest.approx(ENTROPIES[bits], abs=3e-3)
    assert float((q.decode() - w).square().mean()) == pytest.approx(ERRORS[bits], rel=8e-3)


@pytest.mark.parametrize("bits", POSITIVE)
def test_levels_of_the_normal_distribution(bits: int) -> None:
    levels = gaussian_levels(bits)
    np.testing.assert_allclose(levels[len(levels) // 2 :], POSITIVE[bits], rtol=0, atol=6e-8)  # eight digits given
    assert np.array_equal(levels, -levels[::-1])


@pytest.mark.parametrize("bits", [6, 7, 8])
def test_fine_tables_tend_to_the_limit_of_high_resolution(bits: int) -> None:
    error = moments(Normal(), gaussian_levels(bits))[2]
    assert error * 4**bits == pytest.approx(np.sqrt(3) * np.pi / 2, rel=3 * 2.0**-bits)  # Panter and Dite; next order


@pytest.mark.parametrize("held", [{}, {5: 0.3}, {0: -12.0, 3: -0.5, 4: 0.1}])
def test_free_levels_are_the_means_of_their_cells_and_held_ones_stay(held: dict[int, float]) -> None:
    levels = lloyd_max(Normal(), 11, held)
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    for i, level in enumerate(levels):
        if i in held:
            assert level == held[i]
        else:
            mean = norm.expect(lb=edges[i], ub=edges[i + 1], conditional=True)
            assert level == pytest.approx(mean, abs=1e-9)


def test_density_of_ratios_against_its_definition() -> None:
    """u = w / a given the maximum a of 5 values is normal and cut at 1; a has the density of a maximum."""
    g, block = AbsmaxRatio(5), 5

    def of(a: float) -> float:
        return 2 * block * norm.pdf(a) * (2 * norm.cdf(a) - 1) ** (block - 1)

    for u in (0.0, 0.4, -0.9):
        want = quad(lambda a, u=u: of(a) * a**2 * a * norm.pdf(a * u) / (2 * norm.cdf(a) - 1), 0, 12)[0]
        assert g.at(np.array([u]))[0] == pytest.approx(want, rel=1e-8)
    points = np.array([-0.5, 0.7])
    for power, integral in enumerate(g.integrals(points)):
        want = quad(lambda u, power=power: u**power * g.at(np.array([u]))[0], *points)[0]
        assert np.diff(integral)[0] == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("block", [1, 2, 16, 64, 1 << 20])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_levels_of_ratios_are_at_an_optimum_of_any_block(block: int, bits: int) -> None:
    g, count = AbsmaxRatio(block), 1 << bits
    levels = lloyd_max(g, count, {count // 2 - 1: 0.0, count - 1: 1.0})
    mass, first, _ = moments(g, levels)
    free = np.ones(count, bool)
    free[[count // 2 - 1, count - 1]] = False
    assert (np.diff(levels) > 0).all()
    assert -1 < levels[0] < 0
    np.testing.assert_allclose((first / mass)[free], levels[free], rtol=0, atol=1e-10)
