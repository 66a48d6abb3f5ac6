"""Every Triton kernel on its examples against its float64 reference: what is left to run where pytest is not installed.

The test suite looks at more (guard zones, invariance, overflow); this looks at the values alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.gpu.sweep import Budget
from bench.gpu.timing import one_line
from kernels.op import Op, operations

__all__ = ["disagreements"]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def disagreements(device: str, budget: Budget) -> tuple[int, int, list[str]]:
    """(examples that agreed, examples that time did not suffice for, a sentence for each that did not agree)."""
    agreed, late = 0, 0
    wrong: list[str] = []
    for op, dtype in ((op, dtype) for dtype in DTYPES for op in operations().values()):
        for label, message in _compared(op, dtype, device, budget):
            if message is None:
                late += 1
            elif message:
                wrong.append(f"{op.name} {label} {dtype}: {message}")
            else:
                agreed += 1
    return agreed, late, wrong


def _compared(op: Op, dtype: torch.dtype, device: str, budget: Budget) -> Iterator[tuple[str, str | None]]:
    """Label and outcome of each example: None out of time, "" it agrees, else how it does not."""
    for example in op.examples(dtype, device):
        if budget.left <= 0:
            yield example.label, None
            continue
        try:
            out = op.triton(**example.arguments)
            yield example.label, op.disagreement(out, example.arguments) or ""
        except Exception as error:
            yield example.label, one_line(error)
