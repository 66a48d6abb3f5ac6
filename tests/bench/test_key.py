"""Everything that a cell's figures depend on is in its key."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bench.key import key_of, key_parts
from bench.protocol import Protocol
from bench.schema import Cell

CELL = Cell("tiny", "alice", "lora", "nf4-g64", 0)
SURROUNDINGS: dict[str, Any] = {"source": "1", "model": "2", "data": "3", "threads": 1, "device": "cpu"}
NAMES = {"model": "other", "task": "other", "order": "qlora", "method": "other", "seed": 1}
OTHER = {"source": "9", "model": "9", "data": "9", "threads": 2, "device": "cuda"}


def key(cell: Cell = CELL, settings: dict[str, Any] | None = None, **surroundings: Any) -> str:
    return key_of(key_parts(cell, Protocol(), settings or {"bits": 4}, **SURROUNDINGS | surroundings))


def test_every_field_of_the_cell_changes_the_key() -> None:
    assert NAMES.keys() == CELL.as_dict().keys()
    keys = {key(dataclasses.replace(CELL, **{name: value})) for name, value in NAMES.items()}  # type: ignore[arg-type]
    assert len(keys | {key()}) == len(NAMES) + 1


@pytest.mark.parametrize(("name", "value"), OTHER.items())
def test_every_surrounding_changes_the_key(name: str, value: Any) -> None:
    assert key(**{name: value}) != key()


def test_settings_and_protocol_change_the_key() -> None:
    assert key(settings={"bits": 3}) != key()
    longer = dataclasses.replace(Protocol(), lm_steps=Protocol().lm_steps + 1)
    assert key_of(key_parts(CELL, longer, {"bits": 4}, **SURROUNDINGS)) != key()
