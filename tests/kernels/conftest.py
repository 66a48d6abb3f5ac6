"""Kernels as the tests run them: interpreted on the CPU, poisoned outputs, inputs between guard zones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import triton
from torch import Tensor

from kernels.op import Op, interpreted
from kernels.tuning import recorded

LOOPS = [  # of tests that interpret kernels with loops
    pytest.mark.skipif(
        triton.__version__ < "3.7" and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
        reason="the interpreter of triton 3.6 cannot run a loop under numpy 2.4 or later",
    ),
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
]
GUARD = 64  # elements before and after a tensor; a multiple of 16 bytes in every dtype

INTERPRETED: dict[str, Op] = {
    op.name: op for name in ("kernels.affine", "kernels.codebook") for op in interpreted(name).OPERATIONS
}


def guarded(t: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of `t` of the same strides inside a buffer of NaN (255 for codes), and that buffer."""
    buffer = torch.full((t.numel() + 2 * GUARD,), poison(t.dtype), dtype=t.dtype, device=t.device)
    inner = buffer.as_strided(t.shape, t.stride(), GUARD)
    inner.copy_(t)
    return inner, buffer


def run_guarded(op: Op, arguments: Mapping[str, Any]) -> Any:
    """The output of `op`, written over NaN; every tensor lies between guard zones, and the outputs' are checked.

    Outputs are found among the arguments of the launches by where they lie; codes are written over 255.
    """
    fenced = {name: guarded(value)[0] if isinstance(value, Tensor) else value for name, value in arguments.items()}
    out, launches = recorded(op.triton, fenced)
    outputs = (out,) if isinstance(out, Tensor) else out
    fresh = {o.data_ptr(): guarded(torch.full_like(o, poison(o.dtype))) for o in outputs}
    for launch in launches:
        written = dict(launch.arguments)
        for name, value in launch.arguments.items():
            if isinstance(value, Tensor) and value.data_ptr() in fresh:
                written[name] = fresh[value.data_ptr()][0].view(value.shape)
        dataclasses.replace(launch, arguments=written).run()
    for o in outputs:
        buffer = fresh[o.data_ptr()][1]
        fences = torch.cat([buffer[:GUARD], buffer[GUARD + o.numel() :]])
        untouched = fences.isnan() if o.dtype.is_floating_point else fences == 255
        assert untouched.all(), f"{op.name} wrote outside its output"
    inner = tuple(fresh[o.data_ptr()][0] for o in outputs)
    return inner[0] if isinstance(out, Tensor) else inner


def poison(dtype: torch.dtype) -> float | int:
    """What outputs hold before they are written."""
    return float("nan") if dtype.is_floating_point else 255
