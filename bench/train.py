"""The training loop: AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), linear warm-up, linear decay to zero.

Weight decay acts on matrices, those of an adapter included, and not on biases, norms and other vectors. A parameter
may have a share of the learning rate of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from bench.data import Batch

__all__ = ["Schedule", "Trained", "optimizer_of", "train"]

CLIP = 1.0  # norm that the gradient is cut to
SHOWN = 5  # steps at most that the first and the last loss are means of


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: `warmup` is the share of the steps in which the learning rate rises to `lr`."""

    steps: int
    lr: float
    weight_decay: float
    warmup: float

    def factor(self, step: int) -> float:
        """The learning rate at `step` (from 0) as a share of `lr`: rising, 1 at the end of the warm-up, falling."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        return (self.steps - step) / max(1, self.steps - rising)


@dataclass(frozen=True)
class Trained:
    """What a training run did: loss of every step (nats), tokens seen, seconds, trainable parameters."""

    losses: tuple[float, ...]
    tokens: int
    train_s: float
    trainable_parameters: int

    def record(self) -> dict[str, Any]:
        """The record's `training` group; losses are means of the first and last steps (a quarter, 5 at most)."""
        shown = max(1, min(SHOWN, len(self.losses) // 4))
        return {
            "trainable_parameters": self.trainable_parameters,
            "steps": len(self.losses),
            "tokens": self.tokens,
            "train_s": self.train_s,
            "first_loss": sum(self.losses[:shown]) / shown,
            "last_loss": sum(self.losses[-shown:]) / shown,
        }


def train(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Batch], Tensor],
    batches: Iterable[Batch],
    schedule: Schedule,
    seed: int,
    shares: Mapping[nn.Parameter, float] | None = None,
) -> Trained:
    """Train the parameters of `model` that require a gradient, in place, for `schedule.steps` batches.

    `batches` is passed over again when it ends. `seed` decides dropout, `shares` as in `optimizer_of`. Raises
    ArithmeticError when a loss is not finite and ValueError when there is nothing to train.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    device = trained[0].device if trained else torch.device("cpu")
    if not trained:
        raise ValueError(f"{type(model).__name__} has no parameter that requires a gradient")
    optimizer = optimizer_of(trained, schedule, shares)
    rate = LambdaLR(optimizer, schedule.factor)
    losses: list[float] = []
    tokens = 0
    begin = time.perf_counter()
    was_training = model.training
    model.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for batch in islice(_endless(batches), schedule.steps):
            loss = loss_of(model, batch.to(device))
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise ArithmeticError(f"the loss of training step {len(losses)} is {losses[-1]}")
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rate.step()
            tokens += batch.n_tokens
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    model.train(was_training)
    return Trained(tuple(losses), tokens, time.perf_counter() - begin, sum(p.numel() for p in trained))


def optimizer_of(
    parameters: Sequence[nn.Parameter], schedule: Schedule, shares: Mapping[nn.Parameter, float] | None = None
) -> AdamW:
    """AdamW over `parameters` with the weight decay of `schedule` on matrices only.

    `shares` are the parts of the schedule's learning rate that parameters train at; those that it lacks have all of it.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in parameters:
        decay, share = schedule.weight_decay if p.ndim >= 2 else 0.0, (shares or {}).get(p, 1.0)
        groups.setdefault((decay, share), []).append(p)
    return AdamW(
        [{"params": ps, "weight_decay": decay, "lr": schedule.lr * share} for (decay, share), ps in groups.items()],
        lr=schedule.lr,
    )


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        seen = 0
        for batch in batches:
            seen += 1
            yield batch
        if not seen:
            raise ValueError("there is no batch to train on; lower the batch size")
