"""Laws of the training stage: an arm that fails at any step is a record, and the others are measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.gpu import training
from bench.gpu.store import TRAINING, read_lines
from bench.gpu.sweep import Budget
from bench.gpu.training import ARMS, TINY, decoder, run_training

BAD = ARMS[1]


class Failing(nn.Module):
    """A model that fails at its n-th forward pass."""

    def __init__(self, model: nn.Module, n: int) -> None:
        super().__init__()
        self.model, self.left = model, n

    def forward(self, **given: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise torch.OutOfMemoryError("too large")
        return self.model(**given)


@pytest.mark.parametrize(
    ("made", "forwards", "known"),
    [(0, 99, False), (1, 1, False), (1, 99, True), (2, 0, True), (2, 4, True)],
    ids=["not made", "memory", "not made again", "first step", "later step"],
)
def test_an_arm_that_fails_costs_itself_only(
    made: int, forwards: int, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`made` models of the bad arm can be made, the last of which runs `forwards` times."""
    count = 0

    def stand(sizes: Any, device: str, method: str) -> nn.Module:
        nonlocal count
        count += method == BAD
        if method == BAD and count > made:
            raise torch.OutOfMemoryError("too large")
        model = decoder(sizes, device, method)
        return Failing(model, forwards) if method == BAD and count == made else model

    monkeypatch.setattr(training, "decoder", stand)
    assert run_training(TINY, "cpu", tmp_path, Budget()) == 1
    records = {r["method"]: r for r in read_lines(tmp_path / TRAINING)[0]}
    assert {arm: r["status"] for arm, r in records.items()} == {arm: "oom" if arm == BAD else "ok" for arm in ARMS}
    assert "too large" in records[BAD]["reason"]
    assert ("training_memory" in records[BAD]) is known
    for arm in ARMS:
        if arm != BAD:
            assert records[arm]["step_s"]["value"] > 0
            assert records[arm]["speedup"]["n"] >= 6


def test_without_time_every_arm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Callable[[], None]] = []
    monkeypatch.setattr(training, "one_size", called.append)
    assert run_training(TINY, "cpu", tmp_path, Budget(0.0)) == 1
    assert [r["status"] for r in read_lines(tmp_path / TRAINING)[0]] == ["skipped"] * len(ARMS)
    assert called == []
