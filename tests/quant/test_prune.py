"""Pruning: exact counts, the closed forms of the error, the bits, and zeros that stay zero."""

from statistics import NormalDist

import pytest
import torch

from quant.core import METHODS
from quant.methods.none import Unquantized
from quant.methods.prune import Magnitude, NOfM, Rows, smallest
from quant.methods.uniform import Uniform

EXACT = Unquantized("float32")


def gaussian(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def error(method, w) -> float:
    return float((method.quantize(w).decode() - w).square().mean())


MAGNITUDE = {0.3: 0.014555, 0.5: 0.071326, 0.6: 0.128756, 0.7: 0.216693, 0.8: 0.350180, 0.9: 0.560714}


@pytest.mark.parametrize("share", MAGNITUDE)
def test_magnitude_error_is_the_closed_form(share):
    normal = NormalDist()
    t = normal.inv_cdf((1 + share) / 2)
    want = 2 * (normal.cdf(t) - 0.5 - t * normal.pdf(t))
    assert want == pytest.approx(MAGNITUDE[share], abs=5e-7)  # six digits given
    assert error(Magnitude(share, values=EXACT), gaussian(1024, 2048)) == pytest.approx(want, rel=5e-3)  # 2 M samples


@pytest.mark.parametrize(("n", "m", "want"), [(2, 4, 0.132306), (4, 8, 0.103141), (8, 16, 0.087489), (1, 4, 0.382363)])
def test_n_of_m_error(n, m, want):
    assert error(NOfM(n, m, EXACT), gaussian(1024, 2048)) == pytest.approx(want, rel=5e-3)


def test_two_of_four_costs_nearly_twice_the_error_of_any_half():
    """.132306 / .071326, both on the same 2 M weights: each within 0.5 %."""
    w = gaussian(1024, 2048)
    assert error(NOfM(2, 4, EXACT), w) / error(Magnitude(0.5, values=EXACT), w) == pytest.approx(1.855, rel=5e-3)


def test_bits():
    w = gaussian(64, 256)
    assert METHODS["prune-2of4"].quantize(w).bits_per_weight == 9.0
    assert METHODS["prune-4of8"].quantize(w).bits_per_weight == 8 + 1.5
    for share in (0.25, 0.5, 0.75):
        assert Magnitude(share).quantize(w).bits_per_weight == 1 + 16 * (1 - share)
    assert METHODS["prune-2of4-int4-g64"].quantize(w).bits_per_weight == 1 + 4.25 / 2
    assert Rows(0.25).quantize(w).bits_per_weight == 12 + 1 / 256


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("values", [EXACT, Uniform(4, 64), METHODS["kmeans-4bit-tensor"], METHODS["nf4-g64"]])
def test_counts_are_exact_and_the_smallest_go(share, values):
    w = gaussian(7, 33).bfloat16()  # ties are certain
    stored = Magnitude(share, values=values).quantize(w)
    kept = stored.kept()
    assert int((~kept).sum()) == round(share * w.numel())
    assert not stored.decode()[~kept].any()
    if 0 < share < 1:
        assert w.abs()[~kept].max() <= w.abs()[kept].min()
    if share == 1:
        assert stored.values is None


def test_of_equal_magnitudes_the_first_go():
    w = torch.tensor([[1.0, -1.0, 1.0, 2.0], [-1.0, 1.0, 3.0, 1.0]])
    assert Magnitude(0.5, values=EXACT).quantize(w).decode().tolist() == [[0, 0, 0, 2.0], [0, 1.0, 3.0, 1.0]]
    assert NOfM(2, 4, EXACT).quantize(torch.ones(1, 4)).decode().tolist() == [[0, 0, 1, 1]]


def test_smallest_agrees_with_a_sort():
    layers = [gaussian(5, 9), gaussian(20, 3).half()]
    ordered = torch.cat([w.float().abs().flatten() for w in layers]).sort().values
    for count in (1, 50, 105):
        threshold, below, equal = smallest(layers, count)
        assert threshold == float(ordered[count - 1])
        assert (below, equal) == (int((ordered < threshold).sum()), int((ordered == threshold).sum()))


def test_global_scope_prunes_the_layer_of_small_weights():
    layers = [gaussian(32, 64), gaussian(32, 64) * 0.1]
    named = {str(i): w for i, w in enumerate(layers)}
    methods = METHODS["prune-50-global"].for_layers(named)
    masks = [methods[name].quantize(w).kept() for name, w in named.items()]
    assert int(sum(m.sum() for m in masks)) == 32 * 64
    smallest_kept = min(w.abs()[m].min() for w, m in zip(layers, masks, strict=True))
    assert max(w.abs()[~m].max() for w, m in zip(layers, masks, strict=True)) < smallest_kept
    assert masks[0].sum() > masks[1].sum()
    local = METHODS["prune-50"]
    assert [int(local.for_layers(named)[n].quantize(w).kept().sum()) for n, w in named.items()] == [1024, 1024]


@pytest.mark.parametrize("values", [EXACT, Uniform(4, 64), METHODS["kmeans-4bit-tensor"]])
@pytest.mark.parametrize("shape", [(1, 1), (3, 65), (2, 7)])
def test_n_of_m_keeps_at_most_n_in_every_group(values, shape):
    stored = NOfM(2, 4, values).quantize(gaussian(*shape))
    got = torch.nn.functional.pad(stored.decode(), (0, -shape[1] % 4)).reshape(shape[0], -1, 4)
    assert int((got != 0).sum(-1).max()) <= 2
    exact = NOfM(4, 4, EXACT).quantize(gaussian(*shape)).decode()
    assert torch.equal(exact, gaussian(*shape))


def test_rows_of_smallest_norm_go():
    w = gaussian(10, 6) * torch.tensor([3.0, 1e-3, 1, 2, 4, 1e-2, 1, 1, 5, 6])[:, None]
    got = Rows(0.2, EXACT).quantize(w).decode()
    assert not got[[1, 5]].any()
    rest = [0, 2, 3, 4, 6, 7, 8, 9]
    assert torch.equal(got[rest], w[rest])
    assert not Rows(1.0).quantize(w).decode().any()


def test_settings_are_checked():
    for make in (lambda: Magnitude(1.5), lambda: Magnitude(0.5, "model"), lambda: Rows(-0.1), lambda: NOfM(5, 4)):
        with pytest.raises(ValueError):
            make()
    with pytest.raises(ValueError, match="scope"):
        Magnitude(0.5, threshold=1.0)
