"""Options of the micro-benchmarks, and the sweep that all their tests share. Timing is on, whatever the default is.

A block is measured once, all competitors in turns; each test then hands pytest-benchmark the samples of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.gpu.kernels import Plan, kernel_plan, sweep_for
from bench.gpu.machine import slug
from bench.gpu.shapes import Block
from bench.gpu.store import KERNELS, Record, Sink, results_folder
from bench.gpu.sweep import Budget, DeviceLostError, Sweep
from bench.gpu.timing import Samples

PLAN = pytest.StashKey[Plan]()
TINY_ROUNDS = 7


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kernels")
    group.addoption("--quick", action="store_true", help="three shapes, five numbers of rows")
    group.addoption("--budget", type=float, default=float("inf"), metavar="S", help="seconds for all kernels")
    group.addoption("--records", type=Path, metavar="DIR", help="where records go (default: results/gpu-<device>)")
    group.addoption("--tiny", action="store_true", help="tiny sizes on the CPU: proves the paths, measures nothing")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_enable = True
    config.stash[PLAN] = kernel_plan(config.getoption("--quick"), tiny=config.getoption("--tiny"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each block and competitor; none without a device to run on."""
    if "block" not in metafunc.fixturenames:
        return
    plan, device = metafunc.config.stash[PLAN], device_of(metafunc.config)
    cells = [
        pytest.param(block, subject.name, id=f"{block}-{subject.name}".replace(" ", "-"))
        for block in plan.blocks
        for subject in plan.subjects
        if device and subject.takes(block) and plan.wanted(block, subject) and not subject.lacks(device)
    ]
    metafunc.parametrize(("block", "name"), cells)


def device_of(config: pytest.Config) -> str:
    """ "cuda", "cpu" for tiny sizes, or nothing to run the kernels on."""
    if config.getoption("--tiny"):
        return "cpu"
    return "cuda" if torch.cuda.is_available() else ""


class Measured:
    """The sweep of this session, block by block."""

    def __init__(self, plan: Plan, sweep: Sweep) -> None:
        self.plan, self.sweep = plan, sweep
        self._block: Block | None = None
        self._records: dict[str, Record] = {}
        self._lost = ""

    def cell(self, block: Block, name: str) -> tuple[Record, Samples]:
        """Record and samples of one competitor; the block is measured when its first competitor is asked for."""
        if self._lost:
            pytest.fail(f"the device was lost before: {self._lost}")
        if block != self._block:
            if self.sweep.budget.left <= 0:
                pytest.skip("the time budget ended before it")
            competing = [
                s
                for s in self.plan.subjects
                if s.takes(block) and self.plan.wanted(block, s) and not s.lacks(self.sweep.watch.device)
            ]
            self._block = block
            try:
                self._records = {r["subject"]: r for r in self.sweep.block(block, competing)}
            except DeviceLostError as error:
                self._lost = str(error)
                pytest.fail(f"the device was lost: {error}")
        return self._records[name], self.sweep.samples.get(name, Samples())


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Measured:
    config = request.config
    plan, device, out = config.stash[PLAN], device_of(config), config.getoption("--records")
    folder = results_folder(out, slug("cuda")) if device == "cuda" else out
    budget = Budget(config.getoption("--budget"), *((TINY_ROUNDS, 0.1) if plan.tiny else ()))
    return Measured(plan, sweep_for(plan, device, Sink(folder, KERNELS, device), budget))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
