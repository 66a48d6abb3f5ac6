"""One child process: what it is asked reaches its executor."""

from multiprocessing.connection import wait

import pytest

from bench.child import Worker
from bench.schema import Cell


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_device_of_a_cell_reaches_its_executor(tmp_path, device):
    worker = Worker("tests.bench.toy_device:execute", 1, tmp_path / "log")
    try:
        worker.give(Cell("m", "t", "beneath", "x"), None, 60.0, device)
        outcome = None
        while outcome is None:
            outcome = worker.look(wait(worker.waits_for, worker.left_s))
    finally:
        worker.stop()
    assert outcome.status == "ok", outcome
    assert outcome.groups["training"]["device"] == device
