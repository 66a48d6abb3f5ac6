"""Which worker takes which cell: groups stay together, the longest first, and help comes when it costs nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.schedule import Schedule, count_workers, threads_of
from bench.schema import Cell

GB = 10**9


def cells(model, *methods, order="beneath", seed=0):
    return [Cell(model, "task", order, method, seed) for method in methods]


def lora(model, seed=0):
    return Cell(model, "task", "lora", "fp32", seed)


def schedule(*groups):
    """Every cell takes a second."""
    return Schedule([cell for group in groups for cell in group], lambda cell: 1.0)


def test_a_group_runs_in_order_on_one_worker_the_longest_first_and_lora_before_all():
    small = [*cells("small", "fp32", order="untouched"), lora("small"), *cells("small", "a")]
    big = cells("big", "a", "b", "c", "d")
    plan = schedule(small, big)
    taken = {0: [], 1: []}
    for _ in range(3):
        for worker in taken:
            taken[worker].append(plan.take(worker))
    assert taken[0] == big[:3]
    assert taken[1] == [small[1], small[0], small[2]]


def test_the_longest_group_is_that_of_most_seconds_not_cells():
    few, many = cells("few", "a", "b"), cells("many", "a", "b", "c")
    plan = Schedule([*many, *few], lambda cell: 10.0 if cell.model == "few" else 1.0)
    assert plan.take(0) == few[0]
    assert plan.take(1) == many[0]


def test_a_worker_that_has_finished_takes_the_next_group_not_started():
    plan = schedule(cells("one", "a", "b", "c"), cells("two", "a", "b"), cells("three", "a"))
    assert [plan.take(0), plan.take(1), plan.take(1)] == [*cells("one", "a"), *cells("two", "a", "b")]
    assert plan.take(1) == cells("three", "a")[0]


def test_help_comes_from_the_end_once_the_baseline_is_finished():
    group = [*cells("m", "a", "b", "c"), lora("m")]
    plan = schedule(group)
    assert plan.take(0) == lora("m")
    assert plan.take(1) is None, "the helper would train the baseline a second time"
    assert plan.take(0) == group[0]
    plan.finished(group[0])
    assert plan.take(1) is None, "not the baseline"
    plan.finished(lora("m"))
    assert plan.take(1) == group[2]
    assert [plan.take(0), plan.take(0), plan.take(1)] == [group[1], None, None]


def test_without_lora_help_comes_after_the_first_cell():
    group = cells("m", "a", "b", "c")
    plan = schedule(group)
    assert [plan.take(0), plan.take(1)] == [group[0], None]
    plan.finished(group[0])
    assert plan.take(1) == group[2]


def test_each_seed_has_its_own_baseline():
    group = [lora("m", 0), lora("m", 1), *cells("m", "a", seed=0), *cells("m", "a", seed=1)]
    plan = schedule(group)
    assert [plan.take(0), plan.take(0)] == group[:2]
    plan.finished(group[0])
    assert [plan.take(1), plan.take(1)] == [group[2], None]
    plan.finished(group[1])
    assert plan.take(1) == group[3]


def test_a_helper_stays_with_the_model_that_it_has_loaded():
    one, two = cells("one", *"abcdef"), cells("two", *"abcde")
    plan = schedule(one, two)
    for worker, group in enumerate((one, two)):
        plan.finished(plan.take(worker) or group[0])
    assert plan.take(2) == one[-1]
    assert [plan.take(0), plan.take(0)] == one[1:3]  # two has more to do now
    assert plan.take(2) == one[-2]


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=4), st.integers(1, 4), st.randoms())
def test_every_cell_is_taken_once_and_none_before_a_running_baseline(groups, n_workers, chance):
    every = []
    for i, (n, has_lora) in enumerate(groups):
        every += [*cells(f"m{i}", *map(str, range(n))), *([lora(f"m{i}")] if has_lora else [])]
    plan = Schedule(every, lambda cell: 1.0 + len(cell.method))
    running, done = {}, []
    while True:
        for worker in set(range(n_workers)) - set(running):
            if (cell := plan.take(worker)) is not None:
                running[worker] = cell
        if not running:
            break
        for cell in running.values():
            with_it = [c for c in running.values() if c.model == cell.model]
            assert len(with_it) == 1 or any(c.model == cell.model for c in done)
            assert len(with_it) == 1 or lora(cell.model) not in with_it
        worker = chance.choice(sorted(running))
        done.append(running.pop(worker))
        plan.finished(done[-1])
    assert sorted(done) == sorted(every)


@pytest.mark.parametrize(
    ("threads", "available", "expected"),
    [(1, 64 * GB, 1), (2, 64 * GB, 2), (8, 64 * GB, 4), (2, 6 * GB, 2), (2, 6 * GB - 1, 1), (8, 0, 1)],
)
def test_a_worker_needs_a_judged_cell_a_thread_and_memory(threads, available, expected):
    groups = [*cells("a", "x", "y"), *cells("b", "x"), *cells("c", "x"), *cells("d", "x", order="speed")]
    assert count_workers(groups, threads, available) == expected


def test_only_a_speed_cell_has_all_the_threads():
    assert threads_of(Cell("m", "t", "speed", "x"), 8) == 8
    assert threads_of(lora("m"), 8) == 1
