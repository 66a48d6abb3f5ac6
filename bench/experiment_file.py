"""Reads an experiment from one strict TOML file.

    name = "default"            # also the name of its results folder
    quick = false               # true marks every table and plot as a smoke run
    seeds = [0]
    methods = ["*"]             # patterns (see `bench.select`), unless a grid names its own

    [protocol]                  # any field of `bench.protocol.Protocol`

    [[grid]]                    # every model x task x order x method x seed of it
    models = ["minilm"]
    tasks = ["imdb"]
    orders = ["lora", "beneath"]

An unknown key, a wrong type, a name that does not exist or a pattern that matches nothing is an error that names the
file, the line and the nearest right name. So is a model "path:DIR" or "hf:NAME" that cannot be had, or that is not of
the kind of its grid's tasks.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from bench.errors import UsageError, suggestion, unknown
from bench.experiment import Experiment, Grid, Names
from bench.schema import ORDERS
from bench.select import select
from bench.toml_lines import element_line, key_lines, line_of

__all__ = ["load"]

TOP = ("name", "quick", "seeds", "methods", "protocol", "grid")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
GRID = ("models", "tasks", "orders", "methods", "seeds")


def load(path: Path, names: Names, protocol_type: type[Any], kind_of: Callable[[str], str] | None = None) -> Experiment:
    """The experiment in the file at `path`; UsageError with file:line for anything that is not right.

    `kind_of` gives the kind of a model "path:DIR" or "hf:NAME", or raises UsageError; without it none is looked at.
    """
    return _Reader(path, names, kind_of).experiment(protocol_type)


class _Reader:
    """Reads one file; every complaint carries its line."""

    def __init__(self, path: Path, names: Names, kind_of: Callable[[str], str] | None) -> None:
        self.path, self.names, self.kind_of = path, names, kind_of
        try:
            self.text = path.read_text(encoding="utf-8")
            self.data = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            message, _, place = str(error).partition(" (at line ")
            line = place.split(",")[0]
            raise UsageError(
                f"{path}:{line if line.isdecimal() else self.text.count(chr(10)) + 1}: {message}"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {path}: {error}") from None
        self.lines = key_lines(self.text)

    def at(self, *path: str | int) -> str:
        return f"{self.path}:{line_of(self.lines, path)}: "

    def experiment(self, protocol_type: type[Any]) -> Experiment:
        self.keys(self.data, TOP, ())
        if not isinstance(self.data.get("name"), str) or not self.data["name"].strip():
            raise UsageError(f'{self.at("name")}name must be a text, such as name = "default"')
        if not NAME.fullmatch(self.data["name"]):
            rule = "it names a folder: letters, digits, '.', '_' and '-', the first a letter or a digit"
            raise UsageError(f"{self.at('name')}name {self.data['name']!r} cannot be used, {rule}")
        quick = self.data.get("quick", False)
        if not isinstance(quick, bool):
            raise UsageError(f"{self.at('quick')}quick must be true or false, got {quick!r}")
        tables = self.data.get("grid", [])
        if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
            raise UsageError(f"{self.at('grid')}an experiment needs at least one [[grid]] table")
        grids = tuple(self.grid(table, i) for i, table in enumerate(tables))
        return Experiment(self.data["name"], quick, self.protocol(protocol_type), grids, self.path)

    def keys(self, table: Mapping[str, Any], known: Iterable[str], path: tuple[str | int, ...]) -> None:
        names = list(known)
        for key in table:
            if key not in names:
                blank = " (stray blank?)" if key != key.strip() else ""
                hint = suggestion(key, names) or f" Known: {', '.join(names)}"
                raise UsageError(f"{self.at(*path, key)}unknown key {key!r}{blank}.{hint}")

    def grid(self, table: Mapping[str, Any], i: int) -> Grid:
        self.keys(table, GRID, ("grid", i))
        models = self.texts(table, ("grid", i, "models"))
        tasks = self.texts(table, ("grid", i, "tasks"))
        orders = self.texts(table, ("grid", i, "orders"))
        for model in models:
            if model not in self.names.models and not model.startswith(self.sources()):
                raise self.unknown("model", model, self.names.models, ("grid", i, "models"))
        for task in tasks:
            if task not in self.names.tasks:
                raise self.unknown("task", task, self.names.tasks, ("grid", i, "tasks"))
        for order in orders:
            if order not in ORDERS:
                raise self.unknown("order", order, ORDERS, ("grid", i, "orders"))
        kinds = {self.names.tasks[task] for task in tasks}
        if len(kinds) > 1:
            raise UsageError(f"{self.at('grid', i, 'tasks')}tasks of one grid must be of one kind of model")
        for model in models:
            if model.startswith(self.sources()):
                self.checkpoint(model, next(iter(kinds)), ("grid", i, "models"))
        path = ("grid", i, "methods") if "methods" in table else ("methods",)
        patterns = self.texts(table if "methods" in table else self.data, path, default=("*",))
        methods = tuple(select(f"{self.at(*path)}methods", patterns, self.names.methods, "methods"))
        return Grid(models, tasks, orders, methods, self.seeds(table, i))

    def sources(self) -> tuple[str, ...]:
        return tuple(name for name in self.names.models if name.endswith(":"))

    def checkpoint(self, model: str, kind: str, path: tuple[str | int, ...]) -> None:
        if self.kind_of is None:
            return
        try:
            found = self.kind_of(model)
        except UsageError as error:
            raise UsageError(f"{self.at_element(path, model)}{error}") from None
        if found != kind:
            tasks = f"the tasks of its grid are for models of kind {kind!r}: put it into a grid of its own"
            raise UsageError(f"{self.at_element(path, model)}model {model!r} is of kind {found!r}, but {tasks}")

    def at_element(self, path: tuple[str | int, ...], name: str) -> str:
        return f"{self.path}:{element_line(self.text, line_of(self.lines, path), name)}: "

    def unknown(self, noun: str, name: str, known: Iterable[str], path: tuple[str | int, ...]) -> UsageError:
        return unknown(noun, name, known, where=self.at_element(path, name))

    def texts(
        self, table: Mapping[str, Any], path: tuple[str | int, ...], default: tuple[str, ...] = ()
    ) -> tuple[str, ...]:
        key = str(path[-1])
        value = table.get(key, list(default))
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            got = f"got {value!r}" if key in table else "it is missing"
            raise UsageError(f'{self.at(*path)}{key} must be a list of texts, such as {key} = ["..."]; {got}')
        return tuple(value)

    def seeds(self, table: Mapping[str, Any], i: int) -> tuple[int, ...]:
        path = ("grid", i, "seeds") if "seeds" in table else ("seeds",)
        value = table.get("seeds", self.data.get("seeds", [0]))
        if not isinstance(value, list) or not value or not all(type(v) is int and v >= 0 for v in value):
            raise UsageError(f"{self.at(*path)}seeds must be a list of whole numbers from 0, got {value!r}")
        return tuple(value)

    def protocol(self, protocol_type: type[Any]) -> Any:
        table = self.data.get("protocol", {})
        if not isinstance(table, dict):
            raise UsageError(f"{self.at('protocol')}[protocol] must be a table")
        hints = typing.get_type_hints(protocol_type)
        self.keys(table, [field.name for field in dataclasses.fields(protocol_type)], ("protocol",))
        values = {}
        for key, value in table.items():
            values[key] = tuple(value) if isinstance(value, list) else value
            if not _fits(values[key], hints[key]):
                wanted = getattr(hints[key], "__name__", None) if not typing.get_args(hints[key]) else str(hints[key])
                raise UsageError(f"{self.at('protocol', key)}{key} must be of type {wanted}, got {value!r}")
        try:
            return protocol_type(**values)
        except (TypeError, ValueError) as error:
            named = next((key for key in values if key in str(error)), None)
            place = self.at("protocol", named) if named else self.at("protocol")
            raise UsageError(f"{place}{error}") from None


def _fits(value: object, hint: Any) -> bool:
    """Whether a TOML value may stand for a field of type `hint`; a whole number may stand for a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, arguments[0]) for v in value)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint
