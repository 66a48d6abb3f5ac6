"""Configurations of kernels: which one is taken, when an entry counts, and that nothing is timed unasked."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton

from kernels import tuned, tuning
from kernels.gemv import GEMV
from kernels.tuning import Kernel, Launch, searching

ARGUMENTS = {"x_ptr": torch.zeros(1, dtype=torch.float16), "n": 5000, "k": 4096}
ARGUMENTS |= {"BITS": 4, "GROUP": 64, "ROWS": 0, "PAIRS": False, "NEST": 256}
GPU = "NVIDIA H200"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUANTBENCH_CONFIGURATIONS", str(tmp_path))
    tuned.forget()
    return tmp_path


def test_without_an_entry_the_first_configuration_is_taken(folder: Path) -> None:
    assert tuned.chosen(GEMV, ARGUMENTS, GPU) is GEMV.configs[0]
    assert list(folder.iterdir()) == []


def test_an_entry_serves_its_class_of_shape_and_its_device_alone(folder: Path) -> None:
    tuned.remember(GEMV, ARGUMENTS, GPU, GEMV.configs[2])
    assert [file.name for file in folder.iterdir()] == ["nvidia-h200.json"]
    assert tuned.chosen(GEMV, ARGUMENTS, GPU) is GEMV.configs[2]
    assert tuned.chosen(GEMV, {**ARGUMENTS, "n": 8192}, GPU) is GEMV.configs[2]
    for other in ({"n": 4096}, {"BITS": 3}, {"x_ptr": torch.zeros(1)}):
        assert tuned.chosen(GEMV, {**ARGUMENTS, **other}, GPU) is GEMV.configs[0]
    assert tuned.chosen(GEMV, ARGUMENTS, "NVIDIA A100") is GEMV.configs[0]


def test_entries_are_added_to_those_that_exist(folder: Path) -> None:
    tuned.remember(GEMV, ARGUMENTS, GPU, GEMV.configs[2])
    tuned.remember(GEMV, {**ARGUMENTS, "k": 64}, GPU, GEMV.configs[1])
    assert len(json.loads((folder / "nvidia-h200.json").read_text())) == 2
    assert tuned.chosen(GEMV, ARGUMENTS, GPU) is GEMV.configs[2]


@pytest.mark.parametrize(
    "change", [{"source": "0"}, {"config": {"BLOCK_N": 3, "num_warps": 4, "num_stages": 1}}], ids=str
)
def test_an_entry_of_other_source_or_of_no_configuration_misses(folder: Path, change: dict[str, Any]) -> None:
    tuned.remember(GEMV, ARGUMENTS, GPU, GEMV.configs[2])
    file = folder / "nvidia-h200.json"
    table = {place: {**entry, **change} for place, entry in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(table))
    tuned.forget()
    assert tuned.chosen(GEMV, ARGUMENTS, GPU) is GEMV.configs[0]


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_table_is_no_table(folder: Path, text: str) -> None:
    (folder / "nvidia-h200.json").write_text(text)
    assert tuned.chosen(GEMV, ARGUMENTS, GPU) is GEMV.configs[0]


def test_the_shipped_table_is_read_after_the_users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = folder / "shipped"
    monkeypatch.setenv("QUANTBENCH_CONFIGURATIONS", str(shipped))
    tuned.remember(GEMV, ARGUMENTS, GPU, GEMV.configs[1])
    monkeypatch.setattr(tuned, "SHIPPED", shipped)
    monkeypatch.setenv("QUANTBENCH_CONFIGURATIONS", str(folder / "user"))
    assert tuned.chosen(GEMV, ARGUMENTS, GPU) is GEMV.configs[1]
    tuned.remember(GEMV, ARGUMENTS, GPU, GEMV.configs[3])
    assert tuned.chosen(GEMV, ARGUMENTS, GPU) is GEMV.configs[3]


def test_the_hash_follows_code_and_imports_but_not_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(name: str, text: str) -> None:
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        module = ModuleType(name)
        module.__file__ = str(file)
        monkeypatch.setitem(sys.modules, name, module)
        tuned.source_hash.cache_clear()

    loaded("kernels.inner", "a = 1\n")
    loaded("kernels.outer", "from kernels.inner import a\n")
    before = tuned.source_hash("kernels.outer")
    loaded("kernels.outer", "# why\nfrom kernels.inner import a\n")
    assert tuned.source_hash("kernels.outer") == before
    loaded("kernels.inner", "a = 2\n")
    assert tuned.source_hash("kernels.outer") != before


def test_a_search_takes_the_fastest_and_ignores_noise(folder: Path) -> None:
    times = dict(zip(GEMV.configs, (1.0, 1.2, 0.8, 1.1), strict=True))
    assert tuned.search(GEMV, ARGUMENTS, GPU, times.__getitem__) is GEMV.configs[2]
    assert tuned.chosen(GEMV, ARGUMENTS, GPU) is GEMV.configs[2]
    times[GEMV.configs[2]] = 0.99
    assert tuned.search(GEMV, ARGUMENTS, GPU, times.__getitem__) is GEMV.configs[0]


def test_a_choice_from_a_table_takes_no_time_to_speak_of() -> None:
    tuned.remember(GEMV, ARGUMENTS, GPU, GEMV.configs[2])
    begin = time.thread_time()
    for _ in range(100):
        tuned.chosen(GEMV, ARGUMENTS, GPU)
    assert (time.thread_time() - begin) / 100 < 1e-4  # a launch takes about as long


class Driver:
    """A device that notes which configurations run, and a stop-watch that says how long each takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capturing: bool = False) -> None:
        self.ran: list[int] = []
        monkeypatch.setattr(tuning, "_device_name", lambda device: GPU)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        monkeypatch.setattr(torch.cuda, "device", lambda device: __import__("contextlib").nullcontext())
        monkeypatch.setattr(triton.testing, "do_bench", self.bench)

    def __getitem__(self, grid: Any) -> Any:
        return lambda **given: self.ran.append(given["BLOCK"])

    def bench(self, call: Any, return_mode: str) -> float:
        call()
        return {1: 3.0, 2: 1.0, 4: 2.0}[self.ran[-1]]


class Device(torch.Tensor):
    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)


def launch(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Launch:
    configs = tuple(triton.Config({"BLOCK": b}) for b in (1, 2, 4))
    kernel = Kernel(driver, configs, configs[0], ("n",))
    monkeypatch.setattr(Kernel, "interpreted", False)
    driver.__name__, driver.__module__ = "fake", "kernels.gemv"  # type: ignore[attr-defined]
    return Launch(kernel, lambda meta: (1,), {"out_ptr": torch.zeros(1).as_subclass(Device), "n": 8})


def test_nothing_is_timed_unasked_and_a_search_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)
    one = launch(driver, monkeypatch)
    one.run()
    assert driver.ran == [1]
    with searching():
        one.run()
    assert driver.ran == [1, 1, 2, 4, 2]
    one.run()
    assert driver.ran[-1] == 2


def test_nothing_is_timed_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, capturing=True)
    with searching():
        launch(driver, monkeypatch).run()
    assert driver.ran == [1]
