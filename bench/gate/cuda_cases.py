"""What is timed on a GPU: every operation of `kernels`, on inputs that both versions share.

The inputs are those that the new version's operation makes for timing. Results are checked by the reference
operation's own float64 formula where the old version has it, else by the new one's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from numpy.random import Generator
from torch import Tensor

from bench.gate.blocks import Call
from bench.gate.cases import Case, Missing, Ready, fresh
from bench.gate.load import Side

__all__ = ["cuda_cases"]

BATCHES = (1, 16, 64, 512)
SIZE = 4096
DEVICE = "cuda"


def cuda_cases(reference: Side, new: Side) -> Iterator[Case]:
    """Operations on a batch at each of `BATCHES`, the others once; products first, those with few rows before all."""
    return iter(sorted(_all(reference, new), key=lambda c: (not c.name.split("/")[1].endswith("_matmul"), c.m)))


def _all(reference: Side, new: Side) -> Iterator[Case]:
    for name in dict.fromkeys((*_operations(new), *_operations(reference))):
        owner = new if name in _operations(new) else reference
        judge = _operations(reference).get(name) or _operations(new)[name]
        for m in BATCHES:
            arguments = partial(_arguments, owner, name, m)
            batched = _shapes(owner, name, 1) != _shapes(owner, name, 2)
            size = f"{m}x{SIZE}x{SIZE}" if batched else f"{SIZE}x{SIZE}"
            build = partial(_kernel, name=name, given=arguments, judge=judge)
            yield Case(f"kernel/{name}/bfloat16/{size}", build, m if batched else BATCHES[-1])
            if not batched:
                break


def _operations(side: Side) -> Mapping[str, Any]:
    found: Mapping[str, Any] = side.module("kernels.op").operations()
    return found


def _shapes(side: Side, name: str, m: int) -> list[tuple[int, ...]]:
    arguments = _operations(side)[name].sized(m, 64, 128, torch.bfloat16, "cpu").arguments
    return [tuple(value.shape) for value in arguments.values() if isinstance(value, Tensor)]


def _arguments(owner: Side, name: str, m: int) -> dict[str, Any]:
    return dict(_operations(owner)[name].sized(m, SIZE, SIZE, torch.bfloat16, DEVICE).arguments)


def _kernel(side: Side, *, name: str, given: Any, judge: Any) -> Ready:
    if name not in _operations(side):
        raise Missing(f"no operation {name!r}")
    run, arguments = _operations(side)[name].triton, given()

    def new(rng: Generator) -> Call:
        own = {key: fresh(value, rng) if isinstance(value, Tensor) else value for key, value in arguments.items()}
        return lambda: run(**own)

    def wrong() -> str | None:
        message: str | None = judge.disagreement(run(**arguments), arguments)
        return message

    return Ready(new, wrong)
