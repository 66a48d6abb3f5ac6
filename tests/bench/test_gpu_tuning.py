"""Laws of tuning and of measured routes: the fastest is remembered, a failure is a record, the bound is where it pays.

Times are made up; launches are recorded on the CPU and never run.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import UsageError
from bench.gpu import checks, tuning
from bench.gpu.items import FORMATS, ROWS, Item, Maker, Work, place_of, plan
from bench.gpu.routing import bound, bounds_of, find_routes, places
from bench.gpu.shapes import SHAPES, TINY_SHAPES
from bench.gpu.store import STAGES, Sink, read_lines
from bench.gpu.sweep import Budget
from bench.gpu.timing import CpuWatch, CudaWatch
from bench.gpu.tuning import Tuning, compile_share, named, pinned, seconds_of
from kernels import routes, tuned
from kernels.op import operations
from kernels.routes import DEFAULT, Bounds, route, size_class

DEVICE = "toy gpu"
ABOUT = {"device": "cuda", "device_name": DEVICE}


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the tables of this test alone."""
    folder = tmp_path / "configurations"
    monkeypatch.setenv("QUANTBENCH_CONFIGURATIONS", str(folder))
    tuned._table.cache_clear()
    routes._measured.cache_clear()
    yield folder
    tuned._table.cache_clear()
    routes._measured.cache_clear()


@pytest.fixture(scope="module")
def works() -> list[Work]:
    make = Maker("cpu")
    return [work for item in plan(tiny=True) for work in make(item)]


def tuned_by(
    works: list[Work], seconds: Any, budget: Budget | None = None, lost: Any = str, without: tuple[str, ...] = ()
) -> tuple[Tuning, list[dict[str, Any]], str]:
    """The tuning of these launches, its records, and what took the device away."""
    sink = Sink(None, STAGES, "cuda")
    made = Tuning(seconds, sink, budget or Budget(), ABOUT, lost)
    items = [Item(str(i), TINY_SHAPES[0]) for i in range(len(works))]
    gone = made.run(items, lambda item: [works[int(item.name)]], without)
    return made, sink.written, gone


def test_every_class_of_launch_is_tuned_once(works: list[Work]) -> None:
    places = [place_of(w.launch) for w in works]
    assert len(places) == len(set(places))
    for what in ("_gemv", "_small", "_dequantize", "_grad", "_lora"):
        assert any(p.startswith(what) for p in places), what
    assert any("quantize" in w.label and "dequantize" not in w.label for w in works)


@pytest.mark.parametrize("name", ["two_of_four_matmul", "bitmask_matmul", "w8a8_matmul"])
def test_products_of_their_own_weight_are_tuned_at_every_number_of_rows(works: list[Work], name: str) -> None:
    assert {item.rows for item in plan() if item.name == name and item.shape == SHAPES[0]} == set(ROWS)
    here = [w for w in works if w.label.startswith(f"{name} {TINY_SHAPES[0]} ")]
    blocks = {w.launch.arguments["BLOCK_M"] for w in here if "BLOCK_M" in w.launch.arguments}
    assert {16, 32, 64} <= blocks
    one_row = {w.launch.kernel.fn.__name__ for w in here if w.label.endswith(" m=1")}
    assert one_row >= {"_sparse_gemv"} or name == "w8a8_matmul"


def test_what_targets_are_set_at_is_tuned_first() -> None:
    items = plan()
    assert len(items) == len(set(items))
    assert {item.name for item in items} == set(operations())
    main = [i for i, item in enumerate(items) if item.method in FORMATS[:2] and item.name.endswith("_matmul")]
    assert main[: 2 * len(ROWS)] == list(range(2 * len(ROWS)))
    assert {items[i].shape for i in main} == set(SHAPES)
    assert max(main) < min(i for i, item in enumerate(items) if item.name.endswith("_dequantize"))


def test_the_fastest_configuration_is_remembered(works: list[Work]) -> None:
    work = next(w for w in works if len(w.launch.kernel.configs) > 2)
    configs = work.launch.kernel.configs
    order = itertools.count()
    made, (record,), _ = tuned_by([work], lambda launch, config: 9.0 - next(order))
    assert made.wrong == 0
    assert tuned.chosen(work.launch.kernel, work.launch.arguments, DEVICE) is configs[-1]
    assert record["config"] == tuned.as_values(configs[-1])
    assert [t["seconds"] for t in record["times"]] == [9.0 - i for i in range(len(configs))]
    assert tuned.chosen(work.launch.kernel, work.launch.arguments, "another gpu") is configs[0]


def test_a_configuration_that_cannot_run_is_never_chosen(works: list[Work]) -> None:
    work = next(w for w in works if len(w.launch.kernel.configs) > 1)
    configs = work.launch.kernel.configs

    def some(launch: Any, config: Any) -> float:
        if config is configs[0]:
            raise RuntimeError("out of shared memory")
        return 1.0

    made, (record,), _ = tuned_by([work], some)
    assert made.wrong == 0
    assert tuned.chosen(work.launch.kernel, work.launch.arguments, DEVICE) is configs[1]
    assert "out of shared memory" in record["reason"]


def test_a_kernel_that_never_runs_has_failed_and_the_next_is_tuned(works: list[Work]) -> None:
    bad, good = [w for w in works if len(w.launch.kernel.configs) > 1][:2]

    def some(launch: Any, config: Any) -> float:
        if launch is bad.launch:
            raise RuntimeError("no")
        return 1.0

    made, records, gone = tuned_by([bad, good], some)
    assert (made.wrong, gone) == (1, "")
    assert [r["status"] for r in records] == ["failed", "ok"]


def test_an_item_that_cannot_be_made_is_a_record_and_the_next_is_tuned(works: list[Work]) -> None:
    sink = Sink(None, STAGES, "cuda")

    def make(item: Item) -> list[Work]:
        if item.name == "bad":
            raise torch.OutOfMemoryError("too large")
        return works[:1]

    made = Tuning(lambda launch, config: 1.0, sink, Budget(), ABOUT)
    assert made.run([Item("bad", TINY_SHAPES[0]), Item("good", TINY_SHAPES[0])], make) == ""
    assert [(r["status"], r["reason"]) for r in sink.written] == [("failed", "OutOfMemoryError: too large"), ("ok", "")]


def test_what_time_does_not_suffice_for_is_listed(works: list[Work]) -> None:
    several = [w for w in works if len(w.launch.kernel.configs) > 1][:3]
    budget = Budget(1e9)

    def slow(launch: Any, config: Any) -> float:
        budget.seconds = 0.0  # over with the first
        return 1.0

    made, records, _ = tuned_by(several, slow, budget)
    assert made.wrong == 0
    assert [r["status"] for r in records] == ["ok", "skipped"]
    assert [t["seconds"] is None for t in records[0]["times"]] == [False, *[True] * (len(records[0]["times"]) - 1)]
    assert "time budget" in records[0]["reason"]
    assert records[1]["unreached"] == [f"1 {TINY_SHAPES[0]}", f"2 {TINY_SHAPES[0]}"]


def test_a_configuration_that_takes_the_device_away_is_left_out_by_the_next_process(works: list[Work]) -> None:
    work = next(w for w in works if len(w.launch.kernel.configs) > 2)
    bad = work.launch.kernel.configs[1]
    gone: list[str] = []

    def some(launch: Any, config: Any) -> float:
        if config is bad or gone:
            gone.append("an illegal memory access")
            raise RuntimeError(gone[0])
        return 1.0

    _, records, guilty = tuned_by([work, work], some, lost=lambda: gone[0] if gone else "")
    assert guilty == named(work.launch, bad)
    assert len(records) == 1
    gone.clear()
    _, records, guilty = tuned_by([work], some, lost=lambda: gone[0] if gone else "", without=(guilty,))
    assert guilty == ""
    assert [t["seconds"] is None for t in records[0]["times"]][:3] == [False, True, False]


def test_a_pinned_launch_has_one_configuration(works: list[Work]) -> None:
    launch = next(w.launch for w in works if len(w.launch.kernel.configs) > 1)
    last = launch.kernel.configs[-1]
    assert pinned(launch, last).kernel.configs == (last,)
    assert pinned(launch, last).arguments is launch.arguments
    assert place_of(pinned(launch, last)) == place_of(launch)


def test_processes_share_out_what_is_compiled(monkeypatch: pytest.MonkeyPatch, works: list[Work]) -> None:
    monkeypatch.setattr(tuning, "SHAPES", TINY_SHAPES)
    monkeypatch.setattr(tuning, "plan", lambda: plan(tiny=True))
    run: list[str] = []

    def stand(launch: Any, config: Any) -> argparse.Namespace:
        return argparse.Namespace(run=lambda: run.append(f"{place_of(launch)} {tuned.as_values(config)}"))

    monkeypatch.setattr(tuning, "pinned", stand)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    first = f" {TINY_SHAPES[0]}"
    pairs = sum(len(w.launch.kernel.configs) for w in works if first in w.label)
    shares = [compile_share("cpu", i, 3, Budget()) for i in range(3)]
    assert sum(shares) == len(run) == len(set(run)) == pairs
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({16: 2.0, 32: 2.0}, 16),
        ({16: 0.5, 32: 0.9, 64: 1.1, 128: 3.0}, 64),
        ({16: 0.5, 32: 1.2, 64: 0.9, 128: 1.1}, 128),
        ({16: 0.5, 32: 0.9}, DEFAULT.dense),  # what was not timed is not moved below the default
        ({16: 1.0}, DEFAULT.dense),
        ({16: 0.5, 1024: 0.9}, 2048),
    ],
)
def test_the_bound_is_from_where_on_it_always_pays(ratios: dict[int, float], expected: int) -> None:
    assert bound(ratios) == expected


def test_bounds_are_of_the_mean_over_shapes() -> None:
    found = {"medium": {64: [4.0, 0.2], 128: [4.0, 0.3]}}  # geometric means 0.89 and 1.10
    assert bounds_of(found) == {"medium": Bounds(DEFAULT.gemv, 128)}
    assert bounds_of({"small": {2: [3.0], 4: [2.0]}}) == {"small": Bounds(DEFAULT.gemv, DEFAULT.gemv + 1)}


def test_remembered_bounds_decide_the_route(tables: Path) -> None:
    assert route(100, 8192, 8192, DEVICE) == "product"
    file = routes.remember(DEVICE, {"medium": Bounds(4, 64)})
    assert file == tables / "toy-gpu.routes.json"
    assert [route(m, 8192, 8192, DEVICE) for m in (4, 63, 64)] == ["gemv", "product", "dense"]
    assert route(100, 28672, 8192, DEVICE) == route(100, 8192, 8192, "another") == "product"
    file.write_text("{broken")
    routes._measured.cache_clear()
    assert route(100, 8192, 8192, DEVICE) == "product"
    file.write_text('{"medium": {"gemv": 9, "dense": 2}}')
    routes._measured.cache_clear()
    assert route(100, 8192, 8192, DEVICE) == "product"


def test_each_class_of_size_is_timed_before_a_second_shape_of_one() -> None:
    ordered = places(SHAPES)
    assert len({size_class(s.n, s.k) for s, _ in ordered[:6]}) == 3
    assert {s for s, _ in ordered} == set(SHAPES)


def test_both_ways_are_timed_and_recorded() -> None:
    sink = Sink(None, STAGES, "cpu")
    found = find_routes(CpuWatch(), sink, Budget(), {"device_name": "toy"}, tiny=True)
    assert set(found["small"]) == {2, 4, 8}
    record = sink.written[0]
    assert record["status"] == "ok"
    assert record["product_over_dense"]["value"] == found["small"][2][0]
    assert record["product_s"]["n"] == record["dense_s"]["n"] >= 3  # as many rounds as fit
    assert find_routes(CpuWatch(), sink, Budget(0.0), {"device_name": "toy"}, tiny=True) == {}


def test_a_rehearsal_writes_no_table_that_real_runs_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: Path
) -> None:
    given = argparse.Namespace(device="cpu", out=tmp_path, seconds=None, since="", without=[])
    monkeypatch.delenv("QUANTBENCH_CONFIGURATIONS")
    for command in (checks.tuning_command, checks.routes_command):
        with pytest.raises(UsageError, match="QUANTBENCH_CONFIGURATIONS"):
            command(given)
    monkeypatch.setenv("QUANTBENCH_CONFIGURATIONS", str(tables))
    monkeypatch.setattr(checks, "first_call_apart", lambda given, budget: 0)
    assert checks.tuning_command(given) == 0
    records = read_lines(tmp_path / STAGES)[0]
    assert {r["status"] for r in records} == {"ok"}
    assert all(r["times"] == [] for r in records)
    assert checks.routes_command(given) == 0
    assert read_lines(tmp_path / STAGES)[0][-1]["kind"] == "bounds"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_configurations_are_timed_on_the_device() -> None:
    make = Maker("cuda")
    made = (work for item in plan(tiny=True) for work in make(item))
    work = next(w for w in made if len(w.launch.kernel.configs) > 1)
    seconds = seconds_of(CudaWatch())
    assert 1e-7 < seconds(work.launch, work.launch.kernel.configs[0]) < 1e-2
