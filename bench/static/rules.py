"""Rules that every kernel keeps, whatever the baseline says, and promises that some operations make on top of them.

No spills; shared memory within the chip's limit; in a quantizer no inexact division and no multiply-add that rounds
once, since its codes are to be equal bit for bit to the reference's. A promise names what an operation's speed rests
on: the matrix unit, or the width of the loads of its codes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bench.static.figures import Figures
from kernels.aot import TARGETS

__all__ = ["PROMISES", "Promise", "broken"]


@dataclass(frozen=True)
class Promise:
    """What kernels whose `operation/kernel` matches `pattern` promise: matrix instructions, and bits a load or store.

    Widths are named as in {"load codes_ptr": 128}. They are promised for warps of 32: AMD's twice as wide ones leave a
    thread half as much to load, and there the baseline alone watches them.
    """

    pattern: str
    matrix: bool = False
    widths: Mapping[str, int] = field(default_factory=dict)


PROMISES = (
    Promise("*/_matmul", matrix=True),
    Promise("*_dequantize/_dequantize", widths={"store out_ptr": 128}),
)


def broken(case: str, target: str, figures: Figures) -> Iterator[str]:
    """Sentences, one for each rule that this case breaks on this target."""
    operation, kernel = case.split("/")[:2]
    limit = TARGETS[target].shared_limit
    if figures["spills"]:
        yield f"{figures['spills']} spills: use smaller tiles or more warps"
    if figures["shared"] > limit:
        yield f"shared memory {figures['shared']} exceeds {limit} bytes: use smaller tiles or fewer stages"
    if "quantize" in operation.replace("dequantize", ""):
        if figures["inexact_divisions"]:
            yield f"{figures['inexact_divisions']} inexact divisions in a quantizer: use tl.div_rn"
        if figures["fused"]:
            yield f"{figures['fused']} fused multiply-adds in a quantizer: compile it with enable_fp_fusion=False"
    for promise in PROMISES:
        if fnmatch.fnmatchcase(f"{operation}/{kernel}", promise.pattern):
            yield from _unkept(promise, figures, narrow=TARGETS[target].gpu.warp_size == 32)


def _unkept(promise: Promise, figures: Figures, *, narrow: bool) -> Iterator[str]:
    if promise.matrix and not figures["matrix"]:
        yield "no matrix instructions, which it promises"
    for access, bits in promise.widths.items():
        has = figures["widths"].get(access, 0)
        if narrow and has < bits:
            yield f"{access} of {has} bits instead of the {bits} that it promises"
