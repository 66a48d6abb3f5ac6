"""Machine code as text: its instructions, its loops, and how often each instruction runs.

A loop is a branch back to an earlier label. How often it turns is not in the machine code; `kernels.trips` reads that
from Triton's own intermediate code, and the loops of the two are matched by nesting and order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kernels.trips import Loop

__all__ = ["Listing", "amd", "amd_rounding", "amd_widths", "executed", "nvidia"]

# place, opcode, branch target
SASS = (
    r"/\*([0-9a-f]{4,})\*/",
    r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+,?\s+)?([A-Z][A-Z0-9_.]*)",
    r"\bBRA\b[^;]*?\b0x([0-9a-f]+)\b",
)
GCN = (r"^\.(LBB\d+_\d+):", r"^\s+((?:v|s|ds|global|buffer|flat|scratch)_\w+)", r"\bs_c?branch\w*\s+\.(LBB\d+_\d+)")
IDLE = ("NOP", "s_nop")


@dataclass(frozen=True)
class Listing:
    """Opcodes in order, and loops as pairs (first, last) of their positions, each before the loops inside it."""

    opcodes: tuple[str, ...]
    loops: tuple[tuple[int, int], ...]

    @property
    def counts(self) -> Counter[str]:
        """How often each opcode stands in the code."""
        return Counter(self.opcodes)


@dataclass
class _Body:
    first: int
    last: int
    inner: list[_Body] = field(default_factory=list)


def nvidia(text: str) -> Listing:
    """The listing of one kernel as `nvdisasm --binary` prints it, with the addresses that branches go to."""
    return _parse(text, SASS)


def amd(text: str) -> Listing:
    """The listing of one kernel as LLVM's AMDGPU assembly."""
    return _parse(text, GCN)


def _parse(text: str, patterns: tuple[str, str, str]) -> Listing:
    label, instruction, branch = (re.compile(p) for p in patterns)
    opcodes: list[str] = []
    places: dict[str, int] = {}
    loops: dict[int, int] = {}
    for line in text.splitlines():
        if named := label.search(line):
            places[named[1].zfill(8)] = len(opcodes)
        if (found := instruction.search(line)) and found[1].split(".")[0] not in IDLE:
            to = branch.search(line)
            first = places.get(to[1].zfill(8)) if to else None
            if first is not None and first < len(opcodes):  # a branch to itself ends the code
                loops[first] = len(opcodes)
            opcodes.append(found[1])
    return Listing(tuple(opcodes), tuple(sorted(loops.items(), key=lambda loop: (loop[0], -loop[1]))))


def amd_widths(code: Listing) -> dict[str, int]:
    """Bits of the widest load and store of global memory; AMD's code does not tell the arguments apart."""
    sizes = {"byte": 8, "short": 16, "b8": 8, "b16": 16, "dwordx2": 64, "dwordx3": 96, "dwordx4": 128}
    found: dict[str, int] = {}
    for opcode in code.counts:
        memory, _, rest = opcode.partition("_")
        what = rest.partition("_")[0]
        if memory in ("global", "buffer", "flat") and what in ("load", "store"):
            size = next((sizes[part] for part in rest.split("_") if part in sizes), 8 if "byte" in rest else 32)
            found[what] = max(found.get(what, 0), size)
    return found


def amd_rounding(text: str) -> tuple[int, int]:
    """Inexact divisions, and multiply-adds that round once and belong to no division that is right.

    LLVM expands an IEEE division into one reciprocal, five fused multiply-adds and a fix-up; a division of integers
    into one reciprocal, scaled to just below 2**32 or 2**64, for 64 bits with multiply-adds by 2**32 beside it.
    """
    lines = [line.strip() for line in text.splitlines()]

    def count(pattern: str) -> int:
        return sum(bool(re.match(pattern, line)) for line in lines)

    exact = count("v_div_fixup")
    whole = count(r"v_mul_f32\w* .*0x(4f7ffffe|5f7ffffc)")
    words = count(r"v_(fma|mad|fmac|mac)(ak|mk)?_f32\w* .*0x[4c]f800000")
    fused = count(r"v_(pk_)?(fma|fmac|mad|mac)(_|k_)(mix)?\w*f(16|32|64)")
    return max(0, count(r"v_rcp_f\d") - exact - whole), max(0, fused - 5 * exact - words)


def executed(listing: Listing, loops: Sequence[Loop]) -> Mapping[str, float]:
    """Instructions that one warp runs by opcode, both sides of every other branch counted.

    `loops` are the loops of the source. Where the machine code has more than the source at some level (a wait for
    memory, the rest of an unrolled loop), the longest are taken for them and the others run once.
    """
    weights = [1.0] * len(listing.opcodes)
    _weigh(_nested(listing.loops), loops, weights)
    total: Counter[str] = Counter()
    for opcode, weight in zip(listing.opcodes, weights, strict=True):
        total[opcode] += weight  # type: ignore[assignment]
    return total


def _nested(loops: Sequence[tuple[int, int]]) -> list[_Body]:
    """Loops inside loops; of two that overlap the code was moved about, and they are one."""
    top: list[_Body] = []
    open_: list[_Body] = []
    for first, last in loops:
        while open_ and open_[-1].last < first:
            open_.pop()
        if open_ and open_[-1].last < last:
            for body in open_:
                body.last = max(body.last, last)
            continue
        body = _Body(first, last)
        (open_[-1].inner if open_ else top).append(body)
        open_.append(body)
    return top


def _weigh(bodies: list[_Body], loops: Sequence[Loop], weights: list[float]) -> None:
    longest = sorted(bodies, key=lambda b: b.first - b.last)[: len(loops)]
    for body, loop in zip(sorted(longest, key=lambda b: b.first), loops, strict=False):
        for i in range(body.first, body.last + 1):
            weights[i] *= loop.trips
        _weigh(body.inner, loop.inner, weights)
