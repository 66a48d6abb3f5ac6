"""Mixed precision: the optimum within the budget, against every assignment of small models."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quant import Calibration, UnsupportedError, quantize_model
from quant.knapsack import bound, choose
from quant.linear import QuantizedLinear
from quant.methods.allocate import Allocated, WithinBytes, damage
from quant.methods.nf4 import NF
from quant.methods.uniform import Uniform
from tests.quant.samples import calibration_of, gaussian

CHOICES = tuple(Uniform(b, 64, zero="integer") for b in (2, 3, 4))
SENSITIVITIES = pytest.mark.parametrize("sensitivity", ["fisher", "second_moment"])


def brute_force(lost: np.ndarray, size: np.ndarray, budget: int) -> float:
    every = itertools.product(range(lost.shape[1]), repeat=len(lost))
    rows = range(len(lost))
    fits = (picks for picks in every if sum(int(size[i, c]) for i, c in zip(rows, picks, strict=True)) <= budget)
    return min(sum(float(lost[i, c]) for i, c in zip(rows, picks, strict=True)) for picks in fits)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 7), st.integers(1, 4), st.floats(0, 1))
def test_the_choice_is_the_best_of_all_assignments(seed, items, choices, slack):
    rng = np.random.default_rng(seed)
    lost = 10.0 ** rng.uniform(-6, 0, (items, choices))
    size = rng.integers(1, 10**7, (items, choices))
    least, most = int(size.min(1).sum()), int(size.max(1).sum())
    budget = least + int(slack * (most - least))
    picks = choose(lost, size, budget)
    every = np.arange(items)
    assert int(size[every, picks].sum()) <= budget
    best = brute_force(lost, size, budget)
    assert float(lost[every, picks].sum()) == pytest.approx(best, rel=1e-7)
    assert bound(lost, size, budget) <= best * (1 + 1e-6)  # its prices of a byte cancel to seven digits


def test_many_layers_are_within_one_item_of_the_lagrangian_bound():
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-3, 0, (210, 1))
    bits = np.array([[2, 3, 4]])
    weights = rng.choice([331776, 110592, 884736], (210, 1))
    lost, size = scale * 4.0**-bits, weights * bits // 8 + 1
    budget = int(3.1 * weights.sum() / 8)
    picks = choose(lost, size, budget)
    got = float(lost[np.arange(210), picks].sum())
    below = bound(lost, size, budget)
    assert below <= got <= below + float(np.ptp(lost, axis=1).max())
    assert got < 0.7 * float(lost[:, 1].sum())  # all at three bits, 3 % smaller


def test_a_budget_below_the_smallest_choices_is_refused():
    with pytest.raises(ValueError, match="the smallest choices take 5, more than the budget of 4"):
        choose(np.ones((1, 2)), np.array([[5, 6]]), 4)
    with pytest.raises(UnsupportedError, match=r"within 2 bits a weight \(128 bytes\): they need 2\.\d+ \(\d+\)"):
        Allocated(CHOICES, 2.0).quantize(gaussian(8, 64), calibration_of(8, 64))


def model(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, Calibration]]:
    """Five layers of different sizes and very different sensitivities."""
    shapes = [(32, 128), (64, 128), (16, 128), (48, 192), (24, 64)]
    weights = {f"l{i}": gaussian(*s, seed=seed + i) for i, s in enumerate(shapes)}
    known = {}
    for i, (name, w) in enumerate(weights.items()):
        c = calibration_of(*w.shape, seed=i)
        known[name] = Calibration(c.second_moment, c.magnitude, c.fisher * 10.0**-i, c.n_samples)
    return weights, known


def measured(weights, known, quantizers, sensitivity) -> tuple[float, int]:
    lost, size = 0.0, 0
    for name, w in weights.items():
        q = quantizers[name].quantize(w, known[name])
        lost += damage(w, q.decode(), known[name], sensitivity)
        size += q.nbytes - q.parts().get("constants", 0)
    return lost, size


@SENSITIVITIES
@pytest.mark.parametrize("bits", [2.5, 3.0, 3.3, 4.0])
def test_within_the_budget_no_assignment_of_the_layers_is_predicted_better(sensitivity, bits):
    weights, known = model()
    fitted = Allocated(CHOICES, bits, sensitivity).for_layers(weights, known)
    lost, size = measured(weights, known, fitted, sensitivity)
    budget = int(bits * sum(w.numel() for w in weights.values()) / 8)
    assert size <= budget
    pairs = {
        (name, c): measured({name: weights[name]}, known, {name: c}, sensitivity) for name in weights for c in CHOICES
    }
    best = min(
        sum(pairs[n, c][0] for n, c in zip(weights, picks, strict=True))
        for picks in itertools.product(CHOICES, repeat=len(weights))
        if sum(pairs[n, c][1] for n, c in zip(weights, picks, strict=True)) <= budget
    )
    assert lost == pytest.approx(best, rel=1e-9)
    for c in CHOICES:
        uniform = measured(weights, known, dict.fromkeys(weights, c), sensitivity)
        assert uniform[1] > budget or lost <= uniform[0]


@SENSITIVITIES
def test_the_best_model_within_so_many_bytes_is_that_of_as_many_bits(sensitivity):
    weights, known = model()
    total = sum(w.numel() for w in weights.values())
    for bits in (2.5, 3.0, 4.0):
        n_bytes = int(bits * total / 8)
        fitted = WithinBytes(CHOICES, n_bytes, sensitivity).for_layers(weights, known)
        assert fitted == Allocated(CHOICES, bits, sensitivity).for_layers(weights, known)
        assert measured(weights, known, fitted, sensitivity)[1] <= n_bytes
    exact = measured(weights, known, dict.fromkeys(weights, CHOICES[1]), sensitivity)
    fitted = WithinBytes(CHOICES, exact[1], sensitivity).for_layers(weights, known)
    assert measured(weights, known, fitted, sensitivity)[0] <= exact[0]  # it fits to the byte
    with pytest.raises(UnsupportedError, match=r"\(9 bytes\)"):
        WithinBytes(CHOICES, 9).for_layers(weights, known)


def test_a_shared_weight_takes_its_bytes_once():
    weights, known = model()
    weights, known = weights | {"again": weights["l1"]}, known | {"again": known["l1"]}
    once = {n: w for n, w in weights.items() if n != "again"}
    n_bytes = measured(once, known, dict.fromkeys(once, CHOICES[2]), "fisher")[1]
    fitted = WithinBytes(CHOICES, n_bytes).for_layers(weights, known)
    assert set(fitted.values()) == {CHOICES[2]}
    assert WithinBytes(CHOICES, n_bytes - 1).for_layers(weights, known) != fitted


def test_bits_go_to_the_layers_that_need_them():
    weights, known = model()
    fitted = Allocated(CHOICES, 3.0).for_layers(weights, known)
    got = {name: q.bits for name, q in fitted.items()}
    assert got["l0"] == 4
    assert got["l4"] == 2


def test_damages_are_those_of_their_definitions():
    w, c = gaussian(6, 16), calibration_of(6, 16)
    decoded = CHOICES[1].quantize(w).decode()
    e = (decoded - w).double()
    assert damage(w, decoded, c, "fisher") == pytest.approx(float((c.fisher.double() * e**2).sum()), rel=1e-5)
    H = c.second_moment.double()
    want = 6 * 16 * float(torch.trace(e @ H @ e.T) / torch.trace(w.double() @ H @ w.double().T))
    assert damage(w, decoded, c, "second_moment") == pytest.approx(want, rel=1e-4)
    assert damage(w * 0, w * 0, c, "second_moment") == 0


def test_a_model_is_stored_within_its_budget_and_a_shared_weight_counts_once():
    net = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 128), nn.Linear(128, 64))
    net[2].weight = net[0].weight
    known = {str(i): calibration_of(*layer.weight.shape, seed=i) for i, layer in enumerate(net)}
    made = quantize_model(net, Allocated(CHOICES, 3.3), calibration=known)
    layers = [m for m in made if isinstance(m, QuantizedLinear)]
    assert layers[0].weight_qt.config() == layers[2].weight_qt.config()
    stored = sum(layer.weight_qt.nbytes for layer in layers[:2])
    assert 8 * stored / (2 * 64 * 128) <= 3.3


def test_settings_are_json_and_nested_needs_are_passed_on():
    method = Allocated((NF(2), NF(4)), 3.5)
    said = json.loads(json.dumps(method.settings()))
    assert said["choices"] == [json.loads(json.dumps(q.settings())) for q in (NF(2), NF(4))]
    assert method.needs == {"fisher"}
    nested = Allocated((Allocated(CHOICES, 3.3, "second_moment"),), 4.0)
    assert nested.needs == {"fisher", "second_moment"}
    with pytest.raises(ValueError, match="needs the calibration's fisher"):
        Allocated(CHOICES, 3.3).for_layers({"a": gaussian(4, 64)}, None)


def test_settings_are_checked():
    for bad in (0, 2.5, True):
        with pytest.raises(ValueError, match="n_bytes must be a positive integer"):
            WithinBytes(CHOICES, bad)
    with pytest.raises(ValueError, match="sensitivity"):
        WithinBytes(CHOICES, 100, "hessian")
    for bad in ({"choices": ()}, {"bits": 0}, {"sensitivity": "hessian"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Allocated(**{"choices": CHOICES, "bits": 3.0} | bad)
