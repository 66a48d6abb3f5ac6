"""The training loop: schedule, weight decay, seeds, and refusal of what is no loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bench.data import Batch
from bench.protocol import QUICK, Protocol
from bench.train import Schedule, optimizer_of, train


def batches(n: int = 4) -> list[Batch]:
    ids = torch.arange(3 * n).view(n, 1, 3)
    return [Batch(i, torch.ones_like(i), torch.tensor([k % 2])) for k, i in enumerate(ids)]


class Line(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        with torch.no_grad():
            self.linear.weight.fill_(0.1)
            self.linear.bias.zero_()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropout(x))


def loss_of(module: nn.Module, batch: Batch) -> torch.Tensor:
    return nn.functional.cross_entropy(module(batch.input_ids.float() / 10), batch.labels)


def test_the_rate_rises_to_its_peak_once_and_falls_to_nothing():
    schedule = Schedule(20, 1.0, 0.0, 0.25)
    factors = [schedule.factor(i) for i in range(20)]
    peak = factors.index(max(factors))
    assert peak == 5
    assert factors[peak] == 1.0
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert 0 < factors[-1] < 0.1
    assert factors[0] == pytest.approx(1 / 6)


def test_without_warm_up_the_first_step_is_the_fastest():
    assert Schedule(10, 1.0, 0.0, 0.0).factor(0) == 1.0


def test_weight_decay_acts_on_matrices_only():
    module = Line()
    optimizer = optimizer_of(list(module.parameters()), Schedule(1, 1e-3, 0.5, 0.0))
    by_decay = {g["weight_decay"]: g["params"] for g in optimizer.param_groups}
    assert by_decay[0.5] == [module.linear.weight]
    assert by_decay[0.0] == [module.linear.bias]


def test_a_parameter_trains_at_its_share_of_the_rate():
    module, schedule = Line(), Schedule(4, 1e-3, 0.0, 0.0)
    share = {module.linear.weight: 0.25}
    groups = optimizer_of(list(module.parameters()), schedule, share).param_groups
    assert {g["lr"]: g["params"] for g in groups} == {2.5e-4: [module.linear.weight], 1e-3: [module.linear.bias]}
    before = {p: p.detach().clone() for p in module.parameters()}
    train(module, loss_of, batches(1), Schedule(1, 1e-3, 0.0, 0.0), 0, share)
    # the first step of AdamW moves every entry that has a gradient by its rate
    moved = [float((p.detach() - old).abs().max()) for p, old in before.items()]
    assert moved == pytest.approx([2.5e-4, 1e-3], rel=1e-3)


def test_training_lowers_the_loss_and_counts_what_it_did():
    module = Line()
    done = train(module, loss_of, batches(), Schedule(60, 0.1, 0.0, 0.1), seed=0)
    record = done.record()
    assert record["steps"] == 60
    assert record["tokens"] == 180
    assert record["trainable_parameters"] == 8
    assert record["last_loss"] < record["first_loss"] - 0.05
    assert record["first_loss"] == pytest.approx(sum(done.losses[:5]) / 5)
    assert not any(p.grad is not None for p in module.parameters())


def test_frozen_parameters_stay_and_the_mode_comes_back():
    module = Line().eval()
    module.linear.weight.requires_grad_(False)
    before = module.linear.weight.clone()
    train(module, loss_of, batches(), Schedule(5, 0.1, 0.1, 0.0), seed=0)
    assert torch.equal(before, module.linear.weight)
    assert module.linear.bias.abs().sum() > 0
    assert not module.training


def test_dropout_follows_the_seed_and_the_global_state_is_left_alone():
    lines = [Line(0.5) for _ in range(3)]
    state = torch.get_rng_state()
    runs = [
        train(line, loss_of, batches(), Schedule(8, 0.1, 0.0, 0.0), seed=s).losses
        for line, s in zip(lines, (1, 1, 2), strict=True)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(state, torch.get_rng_state())


def test_a_loss_that_is_no_number_stops_the_training_with_its_step():
    def bad(module: nn.Module, batch: Batch) -> torch.Tensor:
        return loss_of(module, batch) * (math.nan if int(batch.input_ids[0, 0]) == 6 else 1.0)

    with pytest.raises(ArithmeticError, match="training step 3 is nan"):
        train(Line(), bad, batches(), Schedule(5, 0.1, 0.0, 0.0), seed=0)


def test_nothing_to_train_and_nothing_to_train_on_are_errors():
    with pytest.raises(ValueError, match="no parameter"):
        train(Line().requires_grad_(False), loss_of, batches(), Schedule(1, 0.1, 0.0, 0.0), seed=0)
    with pytest.raises(ValueError, match="no batch"):
        train(Line(), loss_of, [], Schedule(1, 0.1, 0.0, 0.0), seed=0)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("rank", 0, "rank must be positive"),
        ("rank", 2.5, "rank must be a whole number"),
        ("batch", True, "batch must be a whole number"),
        ("lora_lr", float("nan"), "lora_lr must be positive"),
        ("weight_decay", -1.0, "weight_decay must be zero or more"),
        ("warmup", 1.0, "warmup is a share"),
        ("wiki_tokens", 1000, "wiki_tokens must be a multiple of window"),
        ("cosine_texts", 401, "cosine_texts"),
        ("targets", "q_proj", "targets must be 'all' or a list"),
        ("speed_rounds", 4, "speed_rounds must be at least 6"),
    ],
)
def test_a_protocol_refuses_what_cannot_be(field, value, said):
    with pytest.raises(ValueError, match=said):
        Protocol(**{field: value})


def test_a_protocol_may_switch_off_what_may_be_off():
    off = Protocol(dropout=0.0, warmup=0.0, weight_decay=0.0, targets=("q_proj",))
    assert off.settings()["targets"] == ["q_proj"]
    assert QUICK.sentence_train < Protocol().sentence_train
