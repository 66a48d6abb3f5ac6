"""Codes for normal weights, alone and behind a rotation: their error is the code's constant, whatever the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from quant import METHODS
from quant.formats import Vectors
from quant.methods.gaussian import LloydMax, Pairs, pair_levels, root_mean_square
from quant.methods.higgs import HIGGS
from tests.quant.samples import gaussian

LLOYD_MAX = {2: 0.1174818478, 3: 0.0345477608, 4: 0.0095010080}
PAIRS = 0.107598


def normal(n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def heavy(n: int, k: int) -> Tensor:
    """Laplace in columns whose sizes differ tenfold: kurtosis 11. Rotated by g it is 3 - 2 * 11 / g."""
    generator = torch.Generator().manual_seed(1)
    w = torch.empty(n, k).exponential_(generator=generator) * (2 * torch.randint(0, 2, (n, k), generator=generator) - 1)
    return w * torch.logspace(-0.5, 0.5, k)[torch.randperm(k, generator=generator)]


def relative(method: HIGGS, w: Tensor) -> float:
    return float((method.quantize(w).decode() - w).square().sum() / w.square().sum())


@pytest.mark.parametrize("weights", [normal, heavy])
@pytest.mark.parametrize(
    ("method", "want"), [*((HIGGS(b), e) for b, e in LLOYD_MAX.items()), (HIGGS(2, 2), PAIRS)], ids=str
)
def test_relative_error_is_the_constant_of_the_code_whatever_the_weights(weights, method: HIGGS, want: float) -> None:
    # 1 M weights: standard error 0.2 %; the tails of rotated heavy weights are lighter than normal: measured -1.4 %
    assert relative(method, weights(1024, 1024)) == pytest.approx(want, rel=0.02)


def test_without_the_rotation_heavy_weights_cost_more() -> None:
    w = heavy(256, 1024)
    plain = (LloydMax(1024).quantize(w).decode() - w).square().sum() / w.square().sum()
    assert plain > 3 * LLOYD_MAX[4]


def test_blocks_of_their_own_size() -> None:
    w = normal(2048, 1024)
    error = float((LloydMax(128).quantize(w).decode() - w).square().mean())
    assert error == pytest.approx(0.009335, rel=3e-3)  # 2 M samples: standard error 1.2e-3 relative


def test_scale_is_the_root_mean_square_of_each_group_a_short_one_included() -> None:
    w = gaussian(4, 150)
    got = root_mean_square(w, 64)
    want = torch.stack([w[:, i : i + 64].square().mean(1).sqrt() for i in (0, 64, 128)], 1)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(root_mean_square(w, "channel"), w.square().mean(1, keepdim=True).sqrt())
    torch.testing.assert_close(root_mean_square(w, "tensor"), w.square().mean().sqrt().view(1, 1))
    huge = torch.full((1, 4), 2.0**99)
    assert root_mean_square(huge, 4).item() == 2.0**99


def test_bits_and_groups() -> None:
    w = gaussian(64, 2048)
    for bits in (2, 3, 4):
        stored = HIGGS(bits).quantize(w)
        assert stored.inner.group == stored.group == 1024
        assert stored.bits_per_weight == bits + 16 / 1024 + 1 / 64  # scales, and a sign a column for 64 rows
    assert HIGGS(2, 2).quantize(w).bits_per_weight == 2 + 16 / 1024 + 1 / 64
    assert HIGGS(4).quantize(gaussian(8, 576)).inner.group == 64


def test_the_seed_decides_the_rotation() -> None:
    w = gaussian(8, 128)
    one, same, other = (HIGGS(4, seed=s).quantize(w).decode() for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# --- pairs --------------------------------------------------------------------------------------------------------


def test_pairs_are_the_nearest_points() -> None:
    w = normal(8, 64)
    stored = Pairs("channel", "float32").quantize(w)
    scale = stored.scale.view(8, 1, 1, 1)
    points = pair_levels().view(1, 1, 16, 2) * scale
    best = (w.view(8, 32, 1, 2) - points).square().sum(-1).amin(-1)
    torch.testing.assert_close((stored.decode() - w).view(8, 32, 2).square().sum(-1), best)


def test_points_are_the_means_of_their_cells_on_the_normal_plane() -> None:
    """Fixed point of Lloyd's algorithm by quadrature, and its error; steps of 1/100 leave 3e-4 at the cells' edges."""
    t = np.arange(-5.5, 5.5, 0.01)
    w = np.exp(-t * t / 2)
    plane = np.stack(np.meshgrid(t, t, indexing="ij"), -1).reshape(-1, 2)
    mass = np.outer(w, w).ravel() / w.sum() ** 2
    turn = np.array(
        [[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]]
    )  # edges of cells lie on no line of the grid
    points = pair_levels().double().numpy() @ turn
    code = np.argmax(plane @ points.T - (points**2).sum(1) / 2, 1)
    share = np.bincount(code, mass, 16)
    mean = np.stack([np.bincount(code, mass * plane[:, i], 16) for i in (0, 1)], 1) / share[:, None]
    np.testing.assert_allclose(mean, points, rtol=0, atol=6e-4)
    error = (mass * ((plane - points[code]) ** 2).sum(1)).sum() / 2
    assert error == pytest.approx(PAIRS, abs=2e-6)
    assert error < 0.92 * LLOYD_MAX[2]


@pytest.mark.parametrize("k", [1, 7, 64])
def test_a_row_of_odd_length_drops_the_surplus(k: int) -> None:
    w = normal(5, k)
    stored = Pairs("channel").quantize(w)
    assert stored.decode().shape == (5, k)
    assert stored.codes.shape == (5, (-(-k // 2) * 4 + 7) // 8)
    assert (stored.decode() - w).square().mean() < w.square().mean()


def test_a_vector_format_checks_its_tensors() -> None:
    stored = Pairs(64).quantize(normal(4, 128))
    good = {"shape": (4, 128), "dtype": torch.float32, **stored.fields(), "vector_bits": 4, "group": 64}
    for field, bad in (
        ("codes", stored.codes[:, 1:]),
        ("levels", stored.levels.long()),
        ("levels", torch.zeros(17, 2)),
        ("scale", stored.scale[:, :1]),
    ):
        with pytest.raises(ValueError, match=field):
            Vectors(**(good | {field: bad}))
    with pytest.raises(ValueError, match="code 15 has no level"):
        Vectors(**(good | {"levels": torch.zeros(15, 2), "codes": torch.full_like(stored.codes, 255)})).decode()


def test_settings_are_checked() -> None:
    for make, bad in (
        (HIGGS, {"dimension": 3}),
        (HIGGS, {"bits": 3, "dimension": 2}),
        (HIGGS, {"bits": 9}),
        (HIGGS, {"size": 100}),
        (HIGGS, {"scale": "int8"}),
        (LloydMax, {"bits": 0}),
        (Pairs, {"group": -1}),
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            make(**bad)


def test_zero_rows_and_all_zero_weights_stay_zero() -> None:
    w = gaussian(8, 128)
    w[3] = 0
    for name in ("higgs-4bit", "higgs2-2bit"):
        assert not METHODS[name].quantize(w).decode()[3].any()
