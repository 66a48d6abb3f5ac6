"""What a task is: what it adapts a model to, what it judges it on, and the table of tasks."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.data import Batch, fingerprint
from bench.models import Kind, Model
from bench.protocol import Protocol

__all__ = ["TASKS", "Outputs", "Rates", "Task", "find", "fingerprint_of", "register"]

Outputs = Mapping[str, Tensor]  # what a model said, by name; see the tasks


@dataclass(frozen=True)
class Rates:
    """Peak learning rates of a task's ways of adapting."""

    lora: float
    full: float
    head: float
    prompt: float


@dataclass(frozen=True)
class Task(ABC):
    """A task for one kind of model; `corpora` are the texts it reads, which its cells depend on."""

    name: str
    idea: str
    corpora: tuple[str, ...]

    kind: ClassVar[Kind]

    def check(self, model: Model) -> None:
        """Raises ValueError when `model` is of the other kind."""
        if model.kind != self.kind:
            raise ValueError(f"task {self.name!r} is for {self.kind} models, and {model.spec!r} is {model.kind}")

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of every corpus, by name."""
        return {name: fingerprint(name) for name in self.corpora}

    @abstractmethod
    def rates(self, protocol: Protocol) -> Rates:
        """The learning rates of `protocol` that are for this task."""

    @abstractmethod
    def wrap(self, model: Model, seed: int) -> nn.Module:
        """The module that is adapted: `model` with what the task needs on top, sharing its memory."""

    @abstractmethod
    def batches(self, model: Model, protocol: Protocol, seed: int) -> DataLoader[Any]:
        """Training batches in a seeded order."""

    @abstractmethod
    def steps(self, protocol: Protocol) -> int:
        """Training steps."""

    @abstractmethod
    def calibration_batches(self, model: Model, protocol: Protocol, batch: int) -> Iterable[Batch]:
        """Texts of the train pool, `batch` at a time, for calibrated methods."""

    @abstractmethod
    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        """The logits of `module` for `batch`."""

    @abstractmethod
    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """The training loss, a mean in nats."""

    @abstractmethod
    def divergence(self, logits: Tensor, reference: Tensor) -> Tensor:
        """KL(reference || logits) of two models' logits for one batch, a mean over what is predicted, in nats."""

    @abstractmethod
    def outputs(
        self, module: nn.Module, model: Model, protocol: Protocol, baseline: Outputs | None, keep: bool = False
    ) -> Outputs:
        """What `module`, on the device of `model`, says of the held-out texts, as tensors on the CPU.

        With `keep`, also what others need to be compared with it.
        """

    @abstractmethod
    def figures(self, outputs: Outputs, baseline: Outputs | None, protocol: Protocol, kin: bool) -> dict[str, Any]:
        """The metrics of `bench.schema.METRICS`; `kin`: `outputs` are of a model that stands in for the baseline's."""


TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Enter `task` in `TASKS`; a name is registered once."""
    if task.name in TASKS:
        raise ValueError(f"task {task.name!r} is already registered")
    TASKS[task.name] = task
    return task


def find(name: str) -> Task:
    """The task `name`; ValueError names the known ones."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return TASKS[name]


def fingerprint_of(name: str) -> str:
    """sha256 (hex) of all texts that the task `name` reads."""
    parts = find(name).fingerprints()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def mean_divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """The mean over rows of KL(softmax reference || softmax logits), both [..., v], in nats."""
    p, q = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def device_of(model: Model) -> torch.device:
    """Where the weights of `model` are."""
    return next(model.module.parameters()).device


def quiet(module: nn.Module) -> torch.inference_mode:
    """Put `module` in eval mode and forbid gradients: `with quiet(module): ...`."""
    module.eval()
    return torch.inference_mode()
