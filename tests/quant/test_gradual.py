"""Gradual pruning: the cubic schedule, masks that only grow, and an adapter that makes up for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quant import METHODS, LoRAConfig, QuantizedLinear, add_lora, lora_parameters, quantize_model
from quant.gradual import Cubic, Gradual, at_sparsity
from quant.methods.owl import OWL
from quant.methods.prune import Magnitude, NOfM
from quant.methods.sparsegpt import SparseGPT
from quant.methods.wanda import Wanda
from tests.quant.samples import calibration_of, gaussian, inputs


def test_the_schedule_is_the_papers_cubic():
    s = Cubic(final=0.8, end=110, initial=0.2, begin=10, every=10)
    assert [s.sparsity(t) for t in (0, 9, 10, 110, 500)] == [0.2, 0.2, pytest.approx(0.2), 0.8, 0.8]
    assert s.sparsity(60) == s.sparsity(69) == pytest.approx(0.8 - 0.6 * 0.5**3)
    rising = [s.sparsity(t) for t in range(120)]
    assert rising == sorted(rising)
    assert len(set(rising)) == 11
    for wrong in ({"final": 1.5}, {"initial": 0.9}, {"begin": 110}, {"every": 0}):
        with pytest.raises(ValueError):
            Cubic(**{"final": 0.8, "end": 110} | wrong)


def student(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    dense = nn.Sequential(nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 32))
    return add_lora(dense, LoRAConfig(rank=4, alpha=8, seed=seed))


def test_masks_only_grow_and_end_at_the_final_sparsity():
    model = student()
    before = {n: layer.clone() for n, layer in model.named_parameters() if "lora" in n}
    prune = Gradual(model, Magnitude(0.5), Cubic(0.75, 20, every=5))
    last = None
    for step in range(25):
        sparsity = prune(step)
        zero = model[0].base.weight_qt.decode() == 0
        assert int(zero.sum()) == round(sparsity * zero.numel())
        assert last is None or bool((zero >= last).all())
        last = zero
    assert sparsity == 0.75
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if "lora" in n)
    assert not any(p.requires_grad for layer in prune.layers.values() for p in layer.base.parameters())


def test_the_base_is_rebuilt_only_when_the_sparsity_changes_and_keeps_its_bias():
    model = student()
    bias = model[0].base.bias.clone()
    prune = Gradual(model, Magnitude(0.5), Cubic(0.5, 10, every=4))
    bases = []
    for step in range(9):
        prune(step)
        bases.append(model[0].base)
    assert [b is bases[0] for b in bases] == [True] * 4 + [False] * 5
    assert bases[4] is bases[7]
    assert torch.equal(bases[-1].bias, bias)


STEPS, END = 60, 40
AT_ONCE, LITTLE_BY_LITTLE = Cubic(0.8, 1, initial=0.8), Cubic(0.8, END, every=2)


def trained(schedule: Cubic, seed: int) -> tuple[list[float], list[torch.Tensor]]:
    """An adapter learns for 60 steps what the dense model says: the loss of every step, and the bases."""
    model = student(seed)
    x = gaussian(256, 48, seed=5 + seed) * 20
    with torch.no_grad():
        target = model(x)
    prune = Gradual(model, Magnitude(0.8), schedule)
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=1e-2)
    losses, bases = [], []
    for step in range(STEPS):
        prune(step)
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        bases.append(model[0].base.weight_qt.decode())
    return losses, bases


@pytest.mark.parametrize("seed", range(3))
def test_an_adapter_learns_while_the_base_grows_sparser(seed: int):
    """What the schedule promises: the same base in the end, and one nearer to the dense one on the way.

    It promises no better adapter: from about half of the way on, the one that has had its last base for longer is
    ahead on this task, and still is a little at the end.
    """
    (once, fixed), (losses, bases) = (trained(schedule, seed) for schedule in (AT_ONCE, LITTLE_BY_LITTLE))
    dense = student(seed)[0].base.weight.detach()
    for step in range(STEPS):
        assert torch.equal(fixed[step], fixed[0])
        far, at_once = (float((base - dense).norm()) for base in (bases[step], fixed[0]))
        assert far < at_once if step < END else torch.equal(bases[step], fixed[0])
    assert torch.equal(bases[0], dense.bfloat16().float())  # nothing is pruned yet, what is kept is stored so
    assert sum(losses[:END]) < sum(once[:END])
    for found in (losses, once):  # against the pruned model before any training, both have learned more than half
        assert found[-1] < 0.5 * once[0]


@pytest.mark.parametrize("method", [Wanda(0.5), SparseGPT(0.5), OWL(Wanda(0.5))])
def test_calibrated_methods_are_given_what_is_known(method):
    model = student()
    known = {"0": calibration_of(64, 48), "2": calibration_of(32, 64)}
    prune = Gradual(model, method, Cubic(0.6, 3), known)
    for step in range(4):
        prune(step)
    zeros = sum(int((layer.base.weight_qt.decode() == 0).sum()) for layer in prune.layers.values())
    assert zeros / (64 * 48 + 32 * 64) == pytest.approx(0.6, abs=0.01)
    x = inputs(3, 48)
    assert model(x).isfinite().all()
    with pytest.raises(ValueError, match="calibration"):
        Gradual(student(), method, Cubic(0.6, 3))(1)


def test_what_cannot_be_pruned_gradually_is_refused():
    dense = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="no adapters"):
        Gradual(dense, Magnitude(0.5), Cubic(0.5, 10))
    over = add_lora(quantize_model(dense, METHODS["nf4-g64"]), LoRAConfig(rank=2))
    assert isinstance(over[0].base, QuantizedLinear)
    with pytest.raises(ValueError, match="must be dense to start"):
        Gradual(over, Magnitude(0.5), Cubic(0.5, 10))
    for method in (NOfM(2, 4), Wanda("2:4"), METHODS["nf4-g64"]):
        with pytest.raises(ValueError, match="prunes no share"):
            at_sparsity(method, 0.5)
