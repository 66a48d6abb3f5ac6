"""How often the loops of a kernel turn, read from Triton's intermediate code and the arguments of a launch.

The bounds of a loop are integers computed from arguments and from the number of the program; they are evaluated for
program 0, and an inner loop for the first turn of the outer one. A bound that depends on what is in memory is not
known here: such a loop counts as one turn.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Loop", "loops"]

OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "addi": operator.add,
    "subi": operator.sub,
    "muli": operator.mul,
    "divsi": lambda a, b: int(a / b) if b else 0,
    "divui": lambda a, b: a // b if b else 0,
    "ceildivsi": lambda a, b: -(-a // b) if b else 0,
    "remsi": lambda a, b: a % b if b else 0,
    "remui": lambda a, b: a % b if b else 0,
    "minsi": min,
    "minui": min,
    "maxsi": max,
    "maxui": max,
    "shli": operator.lshift,
    "shrsi": operator.rshift,
    "shrui": operator.rshift,
}
FOR = re.compile(r"scf\.for (?:unsigned )?%(\S+) = %(\S+) to %(\S+) step %(\S+)")
WHILE = re.compile(r"scf\.while\b")
CONSTANT = re.compile(r"^%(\S+) = arith\.constant (-?\d+) : i\d+")
BINARY = re.compile(r"^%(\S+) = arith\.(\w+) %(\w+), %(\w+)(?: overflow<\w+>)? : i\d+")
CAST = re.compile(r"^%(\S+) = arith\.(?:extsi|extui|trunci|index_cast) %(\w+) :")
PROGRAM = re.compile(r"^%(\S+) = tt\.get_(program_id|num_programs) ([xyz])")


@dataclass(frozen=True)
class Loop:
    """Turns of a loop, and the loops inside it in order; `known` says whether the turns could be evaluated."""

    trips: int
    inner: tuple[Loop, ...] = ()
    known: bool = True

    @property
    def all_known(self) -> bool:
        """Whether the turns of this loop and of all inside it could be evaluated."""
        return self.known and all(loop.all_known for loop in self.inner)


def loops(ttir: str, arguments: Sequence[int | None], grid: Sequence[int]) -> tuple[Loop, ...]:
    """The outermost loops of `ttir`, Triton's first intermediate code.

    `arguments` are the integers among the kernel's run-time arguments, in order, None for a pointer or a float.
    """
    values: dict[str, int] = {}
    stack: list[tuple[Loop | None, list[Loop]]] = [(None, [])]  # open regions: a loop or None, and the loops in it
    for raw in ttir.splitlines():
        line = re.sub(r"\s*loc\([^)]*\)$", "", raw.strip())
        if "tt.func public" in line:
            names = re.findall(r"%(\w+): ", line)
            values |= {n: a for n, a in zip(names, arguments, strict=False) if a is not None}
        _evaluate(line, values, grid)
        if line.startswith("}") and len(stack) > 1:
            loop, inside = stack.pop()
            stack[-1][1].extend([Loop(loop.trips, tuple(inside), loop.known)] if loop else inside)
        if line.endswith("{"):
            stack.append((_opened(line, values), []))
    return tuple(stack[0][1])


def _opened(line: str, values: dict[str, int]) -> Loop | None:
    if found := FOR.search(line):
        first, last, step = (values.get(name) for name in found.group(2, 3, 4))
        if first is None or last is None or not step:
            return Loop(1, known=False)
        values[found[1]] = first
        return Loop(max(0, -(-(last - first) // step)))
    return Loop(1, known=False) if WHILE.search(line) else None


def _evaluate(line: str, values: dict[str, int], grid: Sequence[int]) -> None:
    if found := CONSTANT.match(line):
        values[found[1]] = int(found[2])
    elif found := PROGRAM.match(line):
        axis = "xyz".index(found[3])
        values[found[1]] = 0 if found[2] == "program_id" else (*grid, 1, 1)[axis]
    elif found := BINARY.match(line):
        a, b = values.get(found[3]), values.get(found[4])
        if a is not None and b is not None and found[2] in OPERATORS:
            values[found[1]] = OPERATORS[found[2]](a, b)
    elif (found := CAST.match(line)) and found[2] in values:
        values[found[1]] = values[found[2]]
