"""Calibration in passes: as many as the budget asks for, and never more statistics at once than it allows."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quant.calibrate import INPUTS, _runs, calibrate
from tests.quant.test_calibrate import BATCHES, NAMES, Attention, loss

MOMENTS = {(4, 4), (5, 5), (6, 6)}  # of the inputs; no weight of the model is square
GRADIENTS = {(6, 4), (5, 6), (6, 5), (3, 6)}


@pytest.fixture
def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), Attention(), nn.Linear(6, 3))


class Held:
    """Bytes of the float32 tensors of some shapes, no parameters, that were made after the collector was frozen."""

    def __init__(self, shapes: set[tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.seen: list[int] = []

    def counts(self, t: object) -> bool:
        return type(t) is Tensor and t.dtype == torch.float32 and tuple(t.shape) in self.shapes

    def look(self) -> None:
        self.seen.append(sum(t.nbytes for t in gc.get_objects() if self.counts(t)))


@pytest.fixture
def frozen(model: nn.Sequential) -> Iterator[None]:
    """What is alive now is hidden from `gc.get_objects`."""
    gc.freeze()
    yield
    gc.unfreeze()


# Bytes of the second moments, in the order of the calls: 64, 144 (which two layers share), 100 and 144.
@pytest.mark.parametrize(
    ("budget", "runs"),
    [
        (1, [64, 144, 100, 144]),
        (207, [64, 144, 100, 144]),
        (208, [208, 100, 144]),
        (244, [208, 244]),
        (308, [308, 144]),
        (451, [308, 144]),
        (452, [452]),
        (1 << 30, [452]),
    ],
)
@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("needs", [INPUTS, ("second_moment",)], ids=["with magnitudes", "alone"])
def test_no_more_second_moments_are_held_than_the_budget_and_those_of_one_layer(
    model: nn.Sequential, needs: tuple[str, ...], budget: int, runs: list[int], tmp_path: Path
) -> None:
    held, whole = Held(MOMENTS), []

    def forward(module: nn.Module, batch: Tensor) -> None:
        try:
            module(batch)
            whole.append(batch)
        finally:
            held.look()

    calibrate(model, BATCHES, needs, forward=forward, folder=tmp_path, budget=budget)
    # one pass over a batch to see which layers read what, then one over all batches for each run
    assert held.seen == [0] + [size for size in runs for _ in BATCHES]
    assert len(whole) == 1  # every other pass ends before the last layer of its run is called
    assert max(held.seen) <= max(budget, 144)


# Bytes of the squared gradients: 96, 120, 120, 120 and 72.
@pytest.mark.parametrize(
    ("budget", "runs"),
    [(1, [96, 120, 120, 120, 72]), (216, [216, 120, 192]), (336, [336, 192]), (1 << 30, [528])],
)
@pytest.mark.usefixtures("frozen")
def test_no_more_squared_gradients_are_held_than_the_budget_and_those_of_one_layer(
    model: nn.Sequential, budget: int, runs: list[int], tmp_path: Path
) -> None:
    held, passes = Held(GRADIENTS), []

    def counted(module: nn.Module, batch: Tensor) -> Tensor:
        passes.append(batch)
        if batch is BATCHES[0]:  # later ones find the gradients of the batch before, which are no statistics
            held.look()
        return loss(module, batch)

    calibrate(model, BATCHES, ["fisher"], loss=counted, folder=tmp_path, budget=budget)
    assert held.seen == runs
    assert len(passes) == len(runs) * len(BATCHES)
    assert max(held.seen) <= max(budget, 120)


def test_a_layer_is_written_before_the_run_behind_it_begins(model: nn.Sequential, tmp_path: Path) -> None:
    written = []

    def forward(module: nn.Module, batch: Tensor) -> None:
        written.append(len(list(tmp_path.iterdir())))
        module(batch)

    calibrate(model, BATCHES, forward=forward, folder=tmp_path, budget=1)
    assert written == [0] + [run for run in range(4) for _ in BATCHES]
    assert len(NAMES) == 5  # two of them share a file


@pytest.mark.parametrize("budget", [0, 3, 7, 10, 100])
def test_runs_are_the_longest_that_fit_in_order(budget: int) -> None:
    sizes = torch.randint(1, 9, (40,), generator=torch.Generator().manual_seed(budget)).tolist()
    runs = list(_runs(list(range(40)), lambda i: sizes[i], budget))
    assert [i for run in runs for i in run] == list(range(40))
    assert all(len(run) == 1 or sum(sizes[i] for i in run) <= budget for run in runs)
    assert all(sum(sizes[i] for i in run) + sizes[after[0]] > budget for run, after in pairwise(runs))
