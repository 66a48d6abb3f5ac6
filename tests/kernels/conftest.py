"""Kernels as the tests run them: interpreted on the CPU, poisoned outputs, inputs between guard zones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kernels.op import Op, interpreted
from kernels.tuning import recorded

GUARD = 64  # elements before and after a tensor; a multiple of 16 bytes in every dtype

INTERPRETED: dict[str, Op] = {
    op.name: op for name in ("kernels.affine", "kernels.codebook") for op in interpreted(name).OPERATIONS
}


def guarded(t: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of `t` of the same strides inside a buffer of NaN (255 for codes), and that buffer."""
    fill = float("nan") if t.dtype.is_floating_point else 255
    buffer = torch.full((t.numel() + 2 * GUARD,), fill, dtype=t.dtype, device=t.device)
    inner = buffer.as_strided(t.shape, t.stride(), GUARD)
    inner.copy_(t)
    return inner, buffer


def run_guarded(op: Op, arguments: Mapping[str, Any]) -> Tensor:
    """The output of `op`, written over NaN; every tensor lies between guard zones, and the output's are checked."""
    fenced = {name: guarded(value)[0] if isinstance(value, Tensor) else value for name, value in arguments.items()}
    out, launches = recorded(op.triton, fenced)
    inner, buffer = guarded(torch.full_like(out, float("nan")))
    for launch in launches:
        own = launch.arguments["out_ptr"]
        written = {**launch.arguments, "out_ptr": inner.view(own.shape)}
        dataclasses.replace(launch, arguments=written).run()
    fences = torch.cat([buffer[:GUARD], buffer[GUARD + out.numel() :]])
    assert fences.isnan().all(), f"{op.name} wrote outside its output"
    return inner
