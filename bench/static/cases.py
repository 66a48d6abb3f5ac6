"""What is compiled: every kernel of every operation in every configuration, for typical aligned arguments.

The launches are recorded from the operation itself, so the gate sees what its dispatcher would run for one row, for
sixteen and for sixty-four. Every configuration of a kernel is compiled for the first arguments that launch it, its
first configuration for the others too; launches that compile to the same code are compiled once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from kernels.aot import code_key
from kernels.op import Op
from kernels.tuning import Launch, recorded

__all__ = ["Case", "K", "N", "cases"]

N, K = 4096, 4096  # rows and columns of the weight
SETS = ((torch.bfloat16, 16), (torch.bfloat16, 64), (torch.bfloat16, 1), (torch.float16, 16))  # dtype, rows of x
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, eq=False)
class Case:
    """One launch of an operation in one configuration, for a weight [n, k] with `values` elements."""

    operation: str
    launch: Launch
    config: Any
    batch: str
    values: int = N * K

    @property
    def kernel(self) -> str:
        """The name of the jit function."""
        return str(self.launch.kernel.fn.__name__)

    @property
    def name(self) -> str:
        """Such as `codebook_matmul/_matmul/m16-bf16/BLOCK_M=16,BLOCK_N=64,w8,s3`."""
        settings = [f"{name}={value}" for name, value in sorted(self.config.kwargs.items())]
        settings += [f"w{self.config.num_warps}", f"s{self.config.num_stages}"]
        return f"{self.operation}/{self.kernel}/{self.batch}/{','.join(settings)}"


def cases(op: Op) -> Iterator[Case]:
    """The distinct programs of `op`."""
    kernels: set[Any] = set()
    codes: set[Hashable] = set()
    for dtype, m in SETS:
        launched = recorded(op.triton, op.sized(m, N, K, dtype, "cpu").arguments)[1]
        for launch in launched:
            for config in launch.kernel.configs[: 1 if launch.kernel.fn in kernels else None]:
                key = code_key(launch, config)
                if key not in codes:
                    codes.add(key)
                    yield Case(op.name, launch, config, f"m{m}-{SHORT[dtype]}")
        kernels |= {launch.kernel.fn for launch in launched}
