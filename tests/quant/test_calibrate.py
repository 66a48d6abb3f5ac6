"""Calibration against the definitions, however it is cut into passes and wherever it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quant import Calibration, quantize_model
from quant.calibrate import StoredCalibration, calibrate
from quant.core import STATISTICS
from quant.methods.uniform import Uniform


class Attention(nn.Module):
    """Two layers that read one tensor, and one that reads their product."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.query(x).tanh() * self.key(x))
        return y


@pytest.fixture
def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), Attention(), nn.Linear(6, 3))


BATCHES = [torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
NAMES = ["0", "1.query", "1.key", "1.out", "2"]


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch)
    return out.square().mean()


def inputs(model: nn.Sequential) -> dict[str, Tensor]:
    x = torch.cat(BATCHES).flatten(0, 1)
    hidden = model[0](x)
    inner = model[1].query(hidden).tanh() * model[1].key(hidden)
    return {"0": x, "1.query": hidden, "1.key": hidden, "1.out": inner, "2": model[1](hidden)}


@pytest.mark.parametrize("budget", [1, 200, 1 << 30])
@pytest.mark.parametrize("kept", [False, True], ids=["memory", "folder"])
def test_the_statistics_are_their_definitions(model: nn.Sequential, budget: int, kept: bool, tmp_path: Path) -> None:
    found = calibrate(model, BATCHES, STATISTICS, loss=loss, budget=budget, folder=tmp_path / "c" if kept else None)
    assert list(found) == NAMES
    weights = {n: model.get_submodule(n).weight for n in NAMES}
    squares = {n: torch.zeros_like(w) for n, w in weights.items()}
    for batch in BATCHES:
        grads = torch.autograd.grad(loss(model, batch), list(weights.values()))
        for name, grad in zip(weights, grads, strict=True):
            squares[name] += grad.square() / len(BATCHES)
    for name, x in inputs(model).items():
        one = found[name]
        assert one.n_samples == 42
        torch.testing.assert_close(one.second_moment, x.T @ x / 42)
        torch.testing.assert_close(one.magnitude, x.abs().mean(0))
        torch.testing.assert_close(one.fisher.float(), squares[name], rtol=2**-8, atol=0)  # bfloat16 has 8 bits


def test_masked_tokens_do_not_count(model: nn.Sequential) -> None:
    mask = torch.arange(7).expand(2, 7) < 3
    found = calibrate(model, BATCHES, mask=lambda batch: mask)
    x = torch.cat([b[:, :3] for b in BATCHES]).flatten(0, 1)
    assert found["0"].n_samples == 18
    torch.testing.assert_close(found["0"].second_moment, x.T @ x / 18)
    torch.testing.assert_close(found["2"].magnitude, model[:2](x).abs().mean(0))


def test_layers_that_read_one_tensor_share_its_second_moment(model: nn.Sequential, tmp_path: Path) -> None:
    found = calibrate(model, BATCHES, folder=tmp_path)
    assert found["1.query"].second_moment is not None
    assert len(list(tmp_path.glob("*.safetensors"))) == len(NAMES) - 1


def test_the_model_is_left_as_it_was(model: nn.Sequential) -> None:
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.train()
    calibrate(model, BATCHES, STATISTICS, loss=loss)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_what_cannot_be_gathered_is_refused_by_name(model: nn.Sequential, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown statistics \['moments'\]; known: second_moment"):
        calibrate(model, BATCHES, ["moments"])
    with pytest.raises(ValueError, match="'fisher' needs loss"):
        calibrate(model, BATCHES, ["fisher"])
    with pytest.raises(ValueError, match="no batch"):
        calibrate(model, [])
    model.append(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="never calls its layers 3"):
        calibrate(model, BATCHES, forward=lambda m, b: m[:3](b))
    with pytest.raises(ValueError, match="no index of a calibration"):
        StoredCalibration(tmp_path)


class Needing(Uniform):
    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"fisher", "magnitude"})


def test_a_method_says_what_it_lacks() -> None:
    w = torch.ones(3, 4)
    with pytest.raises(ValueError, match="Needing needs the calibration's fisher, which was not given"):
        Needing().quantize(w)
    known = Calibration(magnitude=torch.ones(5), fisher=torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"calibration's magnitude must be \[4\], got \[5\]"):
        Needing().quantize(w, known)
    with pytest.raises(ValueError, match="fisher is not finite"):
        Needing().quantize(w, Calibration(None, torch.ones(4), torch.full((3, 4), torch.nan)))
    with pytest.raises(ValueError, match="layer '0': Needing needs the calibration's fisher"):
        quantize_model(nn.Sequential(nn.Linear(4, 3)), Needing())
    assert Needing().quantize(w, Calibration.neutral(3, 4)).shape == (3, 4)


def test_needs_are_those_of_nested_quantizers_too() -> None:
    assert Uniform(scale=Needing()).needs == {"fisher", "magnitude"}
    assert Uniform().needs == frozenset()
