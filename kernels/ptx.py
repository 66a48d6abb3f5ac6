"""What NVIDIA's intermediate code says that its machine code hides: which argument a load reads, and how numbers round.

The address of a load or store is followed back to the kernel argument it was computed from, so the width of the loads
of the packed codes is known apart from those of x. Divisions and fused multiply-adds are counted here, where a
division is still one instruction; in machine code an IEEE division is a dozen fused ones.
Source: PTX ISA, "ld", "st", "cp.async", "div", "fma".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["fused", "inexact_divisions", "widths"]

PARAMETER = re.compile(r"ld\.param\.(?:v(\d)\.)?[bus]64\s+\{?([^\[}]*)\}?,\s*\[\w+_param_(\d+)\]")
MOVED = re.compile(r"^(?:@!?%p\d+\s+)?(?:add|sub|mov|cvta|mad|selp|or|shl|min|max|mul)[\w.]*\s+(%rd\d+),(.*);")
ACCESS = re.compile(r"\b(ld|st)\.[\w.:]*global([\w.:]*)\s[^\[]*\[\s*(%rd\d+)")
COPIED = re.compile(r"\bcp\.async\.c[ag]\.shared\.global[\w.:]*\s*\[[^\]]*\],\s*\[\s*(%rd\d+)[^\]]*\],\s*(\w+)")
REGISTER = re.compile(r"%rd\d+")


def widths(ptx: str, pointers: Mapping[int, str]) -> dict[str, int]:
    """Bits of the widest load and store of each pointer, as {"load codes_ptr": 128, "store out_ptr": 64}.

    `pointers` names the parameters of the kernel that are pointers, by their positions.
    """
    origin: dict[str, str] = {}
    lines = [line.strip() for line in ptx.splitlines()]
    before = -1
    while len(origin) != before:  # an address that a loop carries is known only after the code that follows
        before = len(origin)
        for line in lines:
            _follow(line, origin, pointers)
    found: dict[str, int] = {}
    for line in lines:
        for what, address, bits in _accesses(line):
            name = f"{what} {origin.get(address, 'unknown')}"
            found[name] = max(found.get(name, 0), bits)
    return dict(sorted(found.items()))


def inexact_divisions(ptx: str) -> int:
    """Divisions and reciprocals that need not be correctly rounded."""
    return len(re.findall(r"\b(?:div\.(?:full|approx)|rcp\.approx)\b", ptx))


def fused(ptx: str) -> int:
    """Multiply-adds that round once."""
    return len(re.findall(r"\bfma\.r[nzmp]\b", ptx))


def _follow(line: str, origin: dict[str, str], pointers: Mapping[int, str]) -> None:
    if found := PARAMETER.search(line):
        for i, register in enumerate(REGISTER.findall(found[2])):
            if int(found[3]) + i in pointers:
                origin.setdefault(register, pointers[int(found[3]) + i])
    elif found := MOVED.match(line):
        known = [origin[source] for source in REGISTER.findall(found[2]) if source in origin]
        if known:
            origin.setdefault(found[1], known[0])


def _accesses(line: str) -> list[tuple[str, str, int]]:
    if found := COPIED.search(line):
        return [("load", found[1], 8 * int(found[2], 0))]
    if found := ACCESS.search(line):
        many = re.search(r"\.v(\d)", found[2])
        each = re.search(r"\.[busf](\d+)", found[2])
        if each:
            return [({"ld": "load", "st": "store"}[found[1]], found[3], int(each[1]) * (int(many[1]) if many else 1))]
    return []
