"""OWL: budgets in the order of the outliers, within their band, with the model's total as asked."""

from __future__ import annotations

import pytest
import torch

from quant import METHODS, Calibration
from quant.core import UnsupportedError
from quant.methods.owl import OWL, block_of, budgets
from quant.methods.prune import Magnitude
from quant.methods.sparsegpt import SparseGPT
from quant.methods.wanda import Wanda
from quant.peers import CONTROLS
from tests.quant.samples import gaussian


def model() -> tuple[dict[str, torch.Tensor], dict[str, Calibration]]:
    """Three blocks of unlike sizes with 0, 2 and 8 of 128 inputs a hundred times as large."""
    weights, known = {}, {}
    for block, (rows, loud) in enumerate(((40, 0), (8, 2), (24, 8))):
        for layer in ("up", "down"):
            scale = torch.ones(128)
            scale[:loud] = 1e4
            weights[f"layers.{block}.{layer}"] = gaussian(rows, 128, seed=block)
            known[f"layers.{block}.{layer}"] = Calibration(scale.diag())
    return weights, known


def pruned(methods, weights, known) -> dict[str, int]:
    return {n: int((methods[n].quantize(w, known[n]).decode() == 0).sum()) for n, w in weights.items()}


@pytest.mark.parametrize("method", [Wanda(0.7), SparseGPT(0.7), Magnitude(0.7)])
def test_the_model_is_as_sparse_as_asked_and_louder_blocks_are_pruned_less(method):
    weights, known = model()
    found = OWL(method).for_layers(weights, known)
    shares = [found[f"layers.{i}.up"].sparsity for i in range(3)]
    assert shares == [found[f"layers.{i}.down"].sparsity for i in range(3)]
    assert shares[0] > shares[1] > shares[2]
    assert shares[0] - shares[2] == pytest.approx(2 * 0.08)
    counts = pruned(found, weights, known)
    total = sum(w.numel() for w in weights.values())
    assert abs(sum(counts.values()) - 0.7 * total) <= sum(len(w) for w in weights.values()) / 2  # half a weight a row


def test_outliers_are_counted_against_the_mean_score_of_their_block():
    """Half of one layer's weights score ten, the rest of the block one: a quarter exceeds twice the mean, 3.25."""
    layers = {"a.0.p": torch.ones(4, 8), "a.0.q": torch.ones(4, 8), "a.1.p": torch.ones(4, 16)}
    loud = torch.ones(8)
    loud[:4] = 100.0
    known = {"a.0.p": Calibration(loud.diag()), "a.0.q": Calibration(torch.eye(8)), "a.1.p": Calibration(torch.eye(16))}
    for factor, spread in ((2.0, 0.1), (3.0, 0.1), (3.1, 0.0)):  # 10 > 3.25 factor or not
        found = OWL(Wanda(0.5), factor, 0.1).for_layers(layers, known)
        gap = found["a.1.p"].sparsity - found["a.0.p"].sparsity
        assert gap == pytest.approx(2 * spread)
        assert found["a.0.p"] == found["a.0.q"]


def test_budgets_follow_the_papers_formula_for_blocks_of_one_size():
    shares = {"a": 0.01, "b": 0.03, "c": 0.02, "d": 0.01}
    got = budgets(shares, dict.fromkeys(shares, 10), 0.7, 0.08)
    scaled = {name: (d - 0.01) / 0.02 * 0.16 for name, d in shares.items()}
    mean = sum(scaled.values()) / 4
    for name, s in got.items():
        assert s == pytest.approx(1 - (scaled[name] - mean + 0.3))


@pytest.mark.parametrize("sparsity", [0.0, 0.02, 0.5, 0.97, 1.0])
def test_budgets_stay_within_0_and_1_and_keep_the_total(sparsity):
    shares, sizes = {"a": 0.5, "b": 0.1, "c": 0.0}, {"a": 5, "b": 100, "c": 1000}
    got = budgets(shares, sizes, sparsity, 0.3)
    assert all(0 <= s <= 1 for s in got.values())
    assert sum(got[n] * sizes[n] for n in sizes) / 1105 == pytest.approx(sparsity, abs=1e-12)


def test_blocks_without_outliers_are_pruned_alike():
    w = {"0": gaussian(8, 32), "1": gaussian(8, 32)}
    known = {name: Calibration.neutral(8, 32) for name in w}
    assert OWL(Wanda(0.6)).for_layers(w, known) == {"0": Wanda(0.6), "1": Wanda(0.6)}


def test_a_shared_weight_counts_once():
    weights, known = model()
    twice = weights | {"tied": weights["layers.0.up"]}
    want = OWL(Wanda(0.7)).for_layers(weights, known)
    got = OWL(Wanda(0.7)).for_layers(twice, known | {"tied": known["layers.0.up"]})
    assert {n: got[n] for n in weights} == want
    assert got["tied"] == want["layers.0.up"]


def test_names_of_blocks():
    names = ("model.layers.11.mlp.up_proj", "encoder.layer.0.attention.self.query", "3", "0.2.weight", "project")
    assert [block_of(n) for n in names] == ["model.layers.11", "encoder.layer.0", "3", "0", "project"]


def test_what_it_needs_and_refuses():
    assert METHODS["owl-wanda-70"].needs == OWL(Magnitude(0.5)).needs == {"second_moment"}
    weights, known = model()
    with pytest.raises(ValueError, match=r"calibration of layers\.2\.down"):
        OWL(Wanda(0.7)).for_layers(weights, {n: c for n, c in known.items() if n != "layers.2.down"})
    for make in (
        lambda: OWL(Wanda("2:4")),
        lambda: OWL(Magnitude(0.5, "global")),
        lambda: OWL(METHODS["fp32"]),
        lambda: OWL(Wanda(0.5), factor=0),
        lambda: OWL(Wanda(0.5), spread=-1.0),
    ):
        with pytest.raises(ValueError):
            make()


def test_a_control_prunes_in_a_straight_line_of_depth_and_as_much_as_asked_in_all():
    weights = {f"model.layers.{i}.{name}": gaussian(8, 200, seed=i) for i in range(5) for name in ("up", "down")}
    known = {name: Calibration(torch.eye(200)) for name in weights}
    control = CONTROLS["control-wanda-70-dense-in-front"]
    assert control.needs == {"second_moment"}
    found = control.for_layers(weights, known)
    shares = [found[f"model.layers.{i}.down"].sparsity for i in range(5)]
    assert shares == pytest.approx([0.62, 0.66, 0.70, 0.74, 0.78])
    zeros = pruned(found, weights, known)
    assert [zeros[f"model.layers.{i}.up"] / 1600 for i in range(5)] == pytest.approx(shares)
    with pytest.raises(UnsupportedError, match="budgets by depth need blocks of one size, got 200 to 3200 weights"):
        control.for_layers(
            {n: weights[n][:1] if "0.up" in n else weights[n] for n in list(weights)[:1] + list(weights)[2:6]}
        )
    alone = {"layers.0.up": weights["model.layers.0.up"]}
    assert control.for_layers(alone, known)["layers.0.up"] == Wanda(0.7)
    behind = CONTROLS["control-wanda-70-dense-behind"].for_layers(weights, known)
    assert [behind[f"model.layers.{i}.up"].sparsity for i in range(5)] == pytest.approx(shares[::-1])
    assert {c.method for n, c in CONTROLS.items() if n.startswith("control-wanda-70-")} == {Wanda(0.7)}
