"""An executor that says on which device it was asked to work."""

from __future__ import annotations

from bench.schema import Cell


def execute(cell: Cell, protocol: object, device: str = "cpu") -> dict[str, dict[str, str]]:
    return {"training": {"device": device}}
