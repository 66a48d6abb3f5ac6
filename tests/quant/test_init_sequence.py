"""Starts made layer after layer: the best target is a closed form, and errors of earlier layers are made good."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quant import METHODS, LoRAConfig, QuantizedLinear
from quant.calibrate import calibrate
from quant.init import quantize_with_lora, start_in_sequence
from quant.init.sequence import DAMPING, best_for
from quant.lora import adapted
from tests.quant.samples import gaussian

CONFIG = LoRAConfig(rank=4, alpha=8, seed=0)
METHOD = "uniform-int2-asym-g64"


class Net(nn.Module):
    """Two layers that read the same tensor, and two in a row after them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(64, 64), nn.Linear(64, 64)
        self.deep, self.out = nn.Linear(64, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.left(x)) + torch.relu(self.right(x))
        return self.out(torch.relu(self.deep(hidden)))


def texts(seed: int = 0) -> Tensor:
    return gaussian(512, 64, seed).view(8, 64, 64) * torch.linspace(0.1, 3, 64)


def error(model: nn.Module, x: Tensor) -> float:
    """The mean square of what `model` answers otherwise than the original."""
    with torch.no_grad():
        return float((model(x) - Net()(x)).square().mean())


def test_the_target_is_the_best_matrix_for_the_inputs_that_arrive() -> None:
    weight, x = gaussian(8, 16), gaussian(200, 16, 1)
    z = x @ (5 * gaussian(16, 16, 2)) + 0.3 * gaussian(200, 16, 3)
    moment, across = z.T @ z / 200, x.T @ z / 200
    ridge = float(DAMPING * moment.diagonal().mean())

    def lost(v: Tensor) -> float:
        return float((x @ weight.T - z @ v.T).square().sum() / 200 + ridge * (v - weight).square().sum())

    best = best_for(weight, across, moment)
    for seed in range(8):
        assert lost(best + 10.0 ** -(1 + seed % 4) * gaussian(8, 16, 10 + seed)) > lost(best)
    assert lost(best) < 0.5 * lost(weight)
    assert torch.allclose(best_for(weight, moment, moment), weight, atol=1e-4)
    assert torch.allclose(best_for(weight, torch.zeros(16, 16), torch.zeros(16, 16)), weight)


def test_over_an_exact_base_nothing_is_to_be_made_good() -> None:
    started = start_in_sequence(Net(), METHODS["fp32"], CONFIG, texts())
    assert error(started, texts(1)) < 1e-9


def test_later_layers_make_good_what_earlier_ones_lost() -> None:
    known = calibrate(Net(), [texts()], {"second_moment"})
    apart = quantize_with_lora(Net(), METHODS[METHOD], CONFIG, "eora", known)
    started = start_in_sequence(Net(), METHODS[METHOD], CONFIG, texts())
    assert error(started, texts()) < 0.9 * error(apart, texts())
    assert error(started, texts(1)) < 0.95 * error(apart, texts(1))  # texts that it has not seen
    first, other = (adapted(m)["left"] for m in (apart, started))
    assert torch.allclose(first.merged_weight(), other.merged_weight(), atol=1e-3)  # nothing is lost before it


def test_every_layer_is_quantized_and_learns_and_the_model_stays() -> None:
    model = Net().train()
    started = start_in_sequence(model, METHODS[METHOD], CONFIG, texts())
    assert set(adapted(started)) == {"left", "right", "deep", "out"}
    assert all(isinstance(layer.base, QuantizedLinear) for layer in adapted(started).values())
    trained = {name for name, p in started.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.lora.{factor}" for name in adapted(started) for factor in "AB"}
    assert started.training
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), Net().parameters(), strict=True))
    again = start_in_sequence(model, METHODS[METHOD], CONFIG, texts())
    assert all(torch.equal(p, q) for p, q in zip(started.parameters(), again.parameters(), strict=True))


def test_tokens_that_do_not_count_are_not_seen() -> None:
    x, counted = texts(), torch.ones(8, 64)
    counted[:, 40:] = 0
    masked = start_in_sequence(Net(), METHODS[METHOD], CONFIG, x, mask=lambda batch: counted)
    cut = start_in_sequence(Net(), METHODS[METHOD], CONFIG, x[:, :40])
    for name, layer in adapted(masked).items():
        assert torch.allclose(layer.merged_weight(), adapted(cut)[name].merged_weight(), atol=1e-4)


def test_what_cannot_be_done_layer_after_layer_is_refused() -> None:
    for config in (LoRAConfig(targets=("left",)), LoRAConfig(pooled=True)):
        with pytest.raises(ValueError, match="every linear layer gets a plain adapter here"):
            start_in_sequence(Net(), METHODS[METHOD], config, texts())
    needy = next(method for method in METHODS.values() if "fisher" in method.needs)
    with pytest.raises(ValueError, match="the quantizer needs gradients"):
        start_in_sequence(Net(), needy, CONFIG, texts())
