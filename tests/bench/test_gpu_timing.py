"""Laws of the timing of calls that take turns, and of a sweep over blocks: on a clock that the calls move."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import StoppedError, UsageError
from bench.gpu.ceilings import Ceilings, measure_ceilings
from bench.gpu.machine import parse_clocks, sparing
from bench.gpu.shapes import QUICK_ROWS, ROWS, SHAPES, Block, Shape, blocks
from bench.gpu.store import KERNELS, RESULTS, Sink, counted, read_lines
from bench.gpu.subjects import Baseline, Ready, Stock, Subject, total_bytes
from bench.gpu.sweep import Budget, DeviceLostError, Sweep
from bench.gpu.timing import FEWEST, CpuWatch, CudaWatch, SubjectError, Watch, measure
from kernels.nested import NestedScale

BLOCK = Block("matmul", Shape(8, 16, "toy"), 2)
RATES = Ceilings({"value": 100.0}, {"value": 1000.0}, 1, 1)


class Moved(Watch):
    """A device whose time is what the calls say they take."""

    device, timing, cache_bytes = "cpu", "made up", 1000

    def __init__(self) -> None:
        self.order: list[str] = []
        self.now = 0.0

    def call(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.order.append(name)
            self.now += seconds

        return run

    def once(self, call: Callable[[], Any]) -> tuple[float, float]:
        begin = self.now
        call()
        return self.now - begin, 1e-6

    def replay(self, calls: Any) -> Callable[[], float] | str:
        return lambda: self.once(calls[0])[0] / 2


class Toy(Subject):
    """A subject of a given time, that may fail at some step."""

    level = "rival"

    def __init__(self, name: str, watch: Moved, seconds: float = 1.0, fails: str = "") -> None:
        self.name, self.watch, self.seconds, self.fails = name, watch, seconds, fails

    def takes(self, block: Block) -> bool:
        return True

    def make(self, block: Block, stock: Stock, watch: Watch) -> Ready:
        if self.fails == "make":
            raise RuntimeError("cannot be made")
        if self.fails == "memory":
            raise torch.OutOfMemoryError("out of memory")
        left = iter([None] * 5)
        good = self.watch.call(self.name, self.seconds)

        def late() -> None:
            next(left, None) if self.fails != "later" else next(left)
            good()

        wrong = "it is off by one" if self.fails == "wrong" else None
        return Ready([late], 50, 200, lambda: (wrong, 0.5), lambda: "toy")


class Dense(Toy):
    level = "baseline"


def sweep(watch: Moved, *subjects: Subject, budget: Budget | None = None) -> tuple[Sweep, list[dict[str, Any]]]:
    found: list[dict[str, Any]] = []
    about = {"device_name": "toy"}
    made = Sweep(subjects, watch, RATES, found.append, budget or Budget(rounds=9), about, dict)
    return made, found


def test_every_round_runs_every_call_once_in_changing_order() -> None:
    watch = Moved()
    calls = {name: [watch.call(name, seconds)] for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    out = measure(watch, calls, 12, float("inf"))
    assert {name: set(one.eager) for name, one in out.items()} == {"a": {1.0}, "b": {2.0}, "c": {3.0}}
    assert {len(one.eager) for one in out.values()} == {12}
    eager = watch.order[::2]  # the replay runs each call once more
    turns = [tuple(eager[i : i + 3]) for i in range(0, len(eager), 3)]
    assert len(turns) == 13  # a warm-up that is not counted
    assert all(set(turn) == {"a", "b", "c"} for turn in turns)
    assert len(set(turns)) == 6
    assert {turn[0] for turn in turns} == {"a", "b", "c"}


def test_there_are_enough_rounds_whatever_the_time() -> None:
    watch = Moved()
    assert len(measure(watch, {"a": [watch.call("a", 1.0)]}, 100, 0.0)["a"].eager) == FEWEST


def test_the_inputs_of_a_call_rotate() -> None:
    watch = Moved()
    seen: list[int] = []
    measure(CpuWatch(), {"a": [lambda i=i: seen.append(i) for i in range(3)]}, 8, float("inf"))
    assert set(seen) == {0, 1, 2}
    assert [b - a for a, b in pairwise(seen)].count(0) == 0
    assert watch.copies(100) == 30
    assert watch.copies(10**6) == 1
    assert watch.copies(1) == 96


def test_who_fails_while_timed_is_named() -> None:
    def broken() -> None:
        raise ValueError("first line\nsecond")

    with pytest.raises(SubjectError, match="bad: ValueError: first line") as raised:
        measure(CpuWatch(), {"good": [lambda: None], "bad": [broken]}, 7, 1.0)
    assert raised.value.name == "bad"


def test_rates_and_shares_follow_from_the_time() -> None:
    watch = Moved()
    made, found = sweep(watch, Dense("dense", watch, 4.0), Toy("fast", watch, 1.0))
    made.block(BLOCK, made.subjects)
    record = next(r for r in found if r["subject"] == "fast")
    assert record["time_s"]["value"] == 0.5  # of a replay, half a call here
    assert record["eager_s"]["value"] == 1.0
    assert record["time_kind"] == "graph"
    assert record["speedup"]["value"] == record["speedup_eager"]["value"] == 4.0
    assert (record["bandwidth_bytes_per_s"], record["bandwidth_share"]) == (100.0, 1.0)
    assert (record["flop_per_s"], record["flop_share"]) == (400.0, 0.4)


@pytest.mark.parametrize(
    ("fails", "status"), [("make", "failed"), ("later", "failed"), ("wrong", "wrong"), ("memory", "oom")]
)
def test_one_that_fails_is_a_record_and_the_others_are_timed(fails: str, status: str) -> None:
    watch = Moved()
    made, found = sweep(watch, Dense("dense", watch), Toy("bad", watch, fails=fails), Toy("good", watch))
    made.run([BLOCK])
    by_name = {r["subject"]: r for r in found}
    assert {name: r["status"] for name, r in by_name.items()} == {"dense": "ok", "bad": status, "good": "ok"}
    assert by_name["bad"]["reason"]
    assert "time_s" not in by_name["bad"]
    assert by_name["good"]["speedup"]["value"] == 1.0


def test_a_lost_device_ends_the_run_with_the_name_of_who_did_it(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Moved()
    made, found = sweep(watch, Dense("dense", watch), Toy("bad", watch, fails="make"), Toy("good", watch))

    def gone() -> None:
        if watch.order:
            raise RuntimeError("the device is gone")

    monkeypatch.setattr(made, "settle", gone)
    watch.order.append("x")
    with pytest.raises(DeviceLostError):
        made.run([BLOCK])
    assert found[-1]["reason"].startswith("lost the device")


def test_what_time_does_not_suffice_for_is_told() -> None:
    watch = Moved()
    made, found = sweep(watch, Dense("dense", watch), Toy("a", watch), budget=Budget(0.0))
    made.run([BLOCK])
    assert (found, made.out_of_time) == ([], [str(BLOCK)])


def test_what_is_done_is_not_timed_again() -> None:
    watch = Moved()
    made, found = sweep(watch, Dense("dense", watch), Toy("a", watch), Toy("b", watch))
    made.run([BLOCK], frozenset({made.key(BLOCK, made.subjects[1])}))
    assert {r["subject"] for r in found} == {"dense", "b"}
    made.run([BLOCK], frozenset(made.key(BLOCK, s) for s in made.subjects))
    assert len(found) == 2


def test_interpreted_kernels_are_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="TRITON_INTERPRET is set"):
        sweep(Moved())


def test_blocks_are_the_layers_of_the_models_with_the_targets_first() -> None:
    assert ROWS == (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
    sizes = {(s.n, s.k) for s in SHAPES}
    assert {(8192, 8192), (28672, 8192), (4096, 4096), (14336, 4096), (4096, 14336), (8192, 28672)} <= sizes
    made = blocks()
    assert len(made) == len(set(made)) == len(SHAPES) * (len(ROWS) + 2)
    assert {b.m for b in made[: len(QUICK_ROWS)]} == set(QUICK_ROWS)
    assert set(blocks(quick=True)) < set(made)
    with pytest.raises(ValueError, match="operation must be one of"):
        Block("conv", SHAPES[0])
    with pytest.raises(ValueError, match="a matmul has rows"):
        Block("matmul", SHAPES[0])


def test_bytes_are_counted_in_fields_and_containers() -> None:
    codes, levels = torch.zeros(8, dtype=torch.uint8), torch.zeros(256)
    nested = NestedScale(codes, levels, torch.zeros(1), None, 8)
    assert total_bytes({"a": nested, "b": [torch.zeros(3, dtype=torch.bfloat16)]}, None, 5) == 8 + 1024 + 4 + 6


def test_figures_of_a_cpu_stay_out_of_the_results(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not written to results/"):
        Sink(RESULTS / "gpu-x", KERNELS, "cpu")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to"):
        Sink(tmp_path / "file", KERNELS, "cpu")


def test_a_torn_line_costs_one_record(tmp_path: Path) -> None:
    sink = Sink(tmp_path, KERNELS, "cpu")
    sink({"key": "a", "status": "ok", "kind": "kernel"})
    assert sink.path is not None
    with sink.path.open("a") as file:
        file.write('{"schema": 1, "ke')
    Sink(tmp_path, KERNELS, "cpu")({"key": "b", "status": "failed", "kind": "kernel"})
    good, bad = read_lines(sink.path)
    assert [r["key"] for r in good] == ["a", "b"]
    assert len(bad) == 1
    later = [{"key": "a", "status": "failed"}, {"key": "b", "status": "ok"}]
    assert {r["key"]: r["status"] for r in counted([*good, *later])} == {"a": "ok", "b": "ok"}
    sink.path.write_text(json.dumps({"schema": 99}) + "\n")
    with pytest.raises(UsageError, match="has schema 99"):
        read_lines(sink.path)


def test_a_disk_that_does_not_take_a_record_stops_the_run(tmp_path: Path) -> None:
    sink = Sink(tmp_path, KERNELS, "cpu")
    assert sink.path is not None
    sink.path.mkdir()
    with pytest.raises(StoppedError, match="cannot write"):
        sink({"key": "a", "status": "ok"})


def test_clocks_are_in_base_units_and_read_sparingly() -> None:
    known = parse_clocks("1980, 3201, 41, 120.5, 0x0000000000000001\n")
    assert (known["sm_hz"], known["memory_hz"], known["power_watt"]) == (1_980_000_000, 3_201_000_000, 120.5)
    assert parse_clocks("[N/A], 3201, 41, 1, 0x0")["sm_hz"] is None
    asked: list[int] = []

    def read() -> dict[str, Any]:
        asked.append(1)
        return {"n": len(asked)}

    kept, fresh = sparing(read, 1e9), sparing(read, -1.0)
    assert (kept(), kept()) == ({"n": 1}, {"n": 1})
    assert (fresh(), fresh()) == ({"n": 2}, {"n": 3})


def test_ceilings_count_bytes_read_and_written() -> None:
    watch = Moved()
    watch.once = lambda call: (2.0, 0.0)  # type: ignore[method-assign]
    made = measure_ceilings(watch, copied=1000, side=8)
    assert (made.bandwidth, made.product) == (1000.0, 512.0)


@pytest.mark.alone
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_events_and_graphs_time_the_same_copy() -> None:
    watch = CudaWatch()
    size = 1 << 30
    a, b = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    out = measure(watch, {"copy": [lambda: b.copy_(a)]}, 9, 5.0)["copy"]
    eager, graph = sorted(out.eager)[4], sorted(out.graph)[4]
    assert 1e11 < 2 * size / graph < 2e13  # bytes a second of any GPU that there is
    assert 0.7 < eager / graph < 1.5
    stock = Stock("cuda")
    assert isinstance(Baseline().make(BLOCK, stock, watch).calls[0](), torch.Tensor)
