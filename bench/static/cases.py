"""What is compiled: every kernel of every operation in every configuration, for typical aligned arguments.

The launches are recorded from the operation itself, so the gate sees what its dispatcher would run. All targets see
all configurations of a kernel for the first arguments that launch it; of uniform grids, which share their kernels with
codebooks, the first. What else changes the code (further configurations of those, other numbers of rows, the formats of
`bench.static.variants`) is compiled for one target of each maker, and other dtypes for one target. Launches that
compile to the same code are compiled once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.static.variants import variants
from kernels.aot import TARGETS, code_key
from kernels.op import Op
from kernels.tuning import Launch, recorded

__all__ = ["FEW", "Case", "K", "N", "cases"]

N, K = 4096, 4096  # rows and columns of the weight
BATCHES = (16, 64, 1)
MAIN = "bf16"
FEW = ("sm_90", "gfx942")
ONE = {"fp16": ("sm_90",), "fp32": ("sm_80",)}
SECOND = "affine_"


@dataclass(frozen=True, eq=False)
class Case:
    """One launch of an operation in one configuration, for a weight [n, k] with `values` elements.

    `arguments` says for which: rows of x, dtype, variant. `position` is that of the configuration among its kernel's.
    """

    operation: str
    launch: Launch
    arguments: str
    position: int
    targets: tuple[str, ...]
    values: int = N * K

    @property
    def kernel(self) -> str:
        """The name of the jit function."""
        return str(self.launch.kernel.fn.__name__)

    @property
    def config(self) -> Any:
        """The configuration."""
        return self.launch.kernel.configs[self.position]

    @property
    def settings(self) -> str:
        """Such as `BLOCK_N=64 w8 s3`: the configuration, its warps and stages."""
        own = [f"{name}={value}" for name, value in sorted(self.config.kwargs.items())]
        return " ".join([*own, f"w{self.config.num_warps}", f"s{self.config.num_stages}"])

    @property
    def name(self) -> str:
        """Such as `codebook_matmul/_small/m16-bf16/c0`; a changed configuration keeps its name, and is compared."""
        return f"{self.operation}/{self.kernel}/{self.arguments}/c{self.position}"


def cases(op: Op) -> Iterator[Case]:
    """The distinct programs of `op`."""
    seen: set[Any] = set()  # kernels, and kernels with what they were launched for
    codes: set[Hashable] = set()
    names: Counter[str] = Counter()
    for batch, form, arguments in _inputs(op):
        for launch in recorded(op.triton, arguments)[1]:
            kernel = launch.kernel
            before = [(kernel, form, other) in seen for other in BATCHES if other != batch]
            if form != MAIN and any(before):
                continue
            new = kernel not in seen
            seen |= {kernel, (kernel, form, batch)}
            for position, config in enumerate(kernel.configs if new else kernel.configs[:1]):
                key = code_key(launch, config)
                if key not in codes:
                    codes.add(key)
                    case = Case(op.name, launch, f"m{batch}-{form}", position, _targets(op, form, position, new))
                    names[case.name] += 1
                    again = f"{case.arguments}-{names[case.name]}"  # a kernel that is launched twice
                    yield case if names[case.name] == 1 else replace(case, arguments=again)


def _targets(op: Op, form: str, position: int, new: bool) -> tuple[str, ...]:
    if new and not (position and op.name.startswith(SECOND)):
        return tuple(TARGETS)
    return ONE.get(form, FEW)


def _inputs(op: Op) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Rows of x, what else the arguments are, and the arguments."""
    for m in BATCHES:
        typical = op.sized(m, N, K, torch.bfloat16, "cpu").arguments
        yield m, MAIN, typical
        if m != 64:
            yield m, "fp16", op.sized(m, N, K, torch.float16, "cpu").arguments
            yield m, "fp32", op.sized(m, N, K, torch.float32, "cpu").arguments
            for name, arguments in variants(op, typical):
                yield m, f"{MAIN}-{name}", arguments
