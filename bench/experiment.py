"""An experiment: a grid of cells (models x tasks x orders x methods x seeds), and how the command line narrows it.

Orders that are references run once a seed, unquantized (method fp32); the other orders take every method of the grid.
`bench.experiment_file` reads one from TOML.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import UsageError, unknown
from bench.schema import ORDERS, REFERENCES, Cell
from bench.select import select

__all__ = ["Experiment", "Grid", "Names", "Selection", "builtin", "expand", "find"]

FOLDER = Path(__file__).parent / "experiments"


@dataclass(frozen=True)
class Names:
    """What an experiment may name: methods, models (a source with an argument ends in ':'), tasks with their kind."""

    methods: tuple[str, ...]
    models: tuple[str, ...]
    tasks: Mapping[str, str]


@dataclass(frozen=True)
class Grid:
    """One `[[grid]]` table, its method patterns resolved to names."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    orders: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Experiment:
    """A grid of cells and the protocol under which they are measured."""

    name: str
    quick: bool
    protocol: Any
    grids: tuple[Grid, ...]
    path: Path


@dataclass(frozen=True)
class Selection:
    """What the command line narrows an experiment to; an empty field leaves everything."""

    methods: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    orders: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    replace: tuple[tuple[str, str], ...] = ()  # (model spec, kind): instead of the grid's models of that kind


def builtin() -> dict[str, Path]:
    """The experiments that come with the benchmark, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def find(name: str) -> Path:
    """The file of the experiment `name`: one that comes with the benchmark, or a path ending in .toml."""
    known = builtin()
    if name in known:
        return known[name]
    if name.endswith(".toml") or "/" in name:
        if not Path(name).is_file():
            raise UsageError(f"no experiment file {name!r}. Known by name: {', '.join(known)}")
        return Path(name)
    raise unknown("experiment", name, known)


def expand(experiment: Experiment, names: Names, selection: Selection | None = None) -> list[Cell]:
    """Every cell once, references first, so that a baseline precedes what is compared with it.

    Patterns of methods narrow the quantized cells only: their references stay, unless the orders leave them out.
    """
    chosen = selection or Selection()
    grids = [_replaced(grid, names, chosen.replace) for grid in experiment.grids]
    if chosen.replace and all(grid == old for grid, old in zip(grids, experiment.grids, strict=True)):
        specs = ", ".join(f"{spec} ({kind})" for spec, kind in chosen.replace)
        raise UsageError(f"--model {specs} fits no task of experiment {experiment.name!r}")
    methods = _chosen("--methods", chosen.methods, names.methods, "methods")
    models = _chosen("--models", chosen.models, (m for g in grids for m in g.models), "models")
    tasks = _chosen("--tasks", chosen.tasks, (t for g in grids for t in g.tasks), "tasks")
    orders = _chosen("--orders", chosen.orders, ORDERS, "orders")
    cells: dict[Cell, None] = {}
    for grid in grids:
        for model in (m for m in grid.models if m in models):
            for task in (t for t in grid.tasks if t in tasks):
                for order in (o for o in grid.orders if o in orders):
                    those = ["fp32"] if order in REFERENCES else [m for m in grid.methods if m in methods]
                    for method in those:
                        for seed in chosen.seeds or grid.seeds:
                            cells[Cell(model, task, order, method, seed)] = None
    if not cells:
        raise UsageError(f"experiment {experiment.name!r} has no cell with these models, tasks, orders and methods")
    rank = {order: i for i, order in enumerate(ORDERS)}
    place = {pair: i for i, pair in enumerate(dict.fromkeys((c.model, c.task) for c in cells))}

    def position(cell: Cell) -> tuple[bool, int, int]:
        return cell.order not in REFERENCES, place[cell.model, cell.task], rank[cell.order]

    return sorted(cells, key=position)


def _chosen(option: str, patterns: Sequence[str], known: Iterable[str], noun: str) -> set[str]:
    return set(select(option, patterns, known, noun)) if patterns else set(known)


def _replaced(grid: Grid, names: Names, replace: Sequence[tuple[str, str]]) -> Grid:
    """`grid` with the given models in place of its own where their kind is that of its tasks."""
    kinds = {names.tasks[task] for task in grid.tasks}
    fitting = tuple(dict.fromkeys(spec for spec, kind in replace if {kind} == kinds))
    return dataclasses.replace(grid, models=fitting) if fitting else grid
