"""The committed baseline, one file for each version of Triton, and the verdict on every kernel against it.

WORSE: a figure grew beyond its margin, or an access became narrower, or the matrix unit is not used any more. BETTER:
none did, and some figure fell by as much. NEW and GONE: the case is in one of the two only. BROKEN: a rule that holds
always. Compilation is deterministic, so the margins are not for noise: they let small trades through.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.static.figures import Figures, Table
from bench.static.rules import broken

__all__ = ["MARGINS", "Row", "baseline_file", "compare", "load", "merged", "save"]

MARGINS: Mapping[str, tuple[float, float]] = {  # relative, and at least so much
    "registers": (0.05, 2),
    "per_value": (0.03, 0.01),
    "shared": (0, 0),
    "spills": (0, 0),
}
RED = ("WORSE", "BROKEN")


@dataclass(frozen=True)
class Row:
    """The verdict on one case for one target, and what changed, in words."""

    case: str
    target: str
    verdict: str
    changes: tuple[str, ...] = ()

    @property
    def red(self) -> bool:
        """Whether it fails the gate."""
        return self.verdict in RED


def baseline_file(folder: Path, triton: str) -> Path:
    """Where the baseline of a version of Triton lies, such as `triton-3.9.0.json`."""
    return folder / f"triton-{triton.split('+')[0]}.json"


def load(file: Path) -> Table | None:
    """The figures of a baseline, None where there is no such file."""
    return json.loads(file.read_text(encoding="utf-8"))["figures"] if file.exists() else None


def save(file: Path, table: Table, reason: str) -> None:
    """Write a baseline and why it changed; a case and target to a line, so that a change of one changes one line."""
    lines = []
    for case, by_target in sorted(table.items()):
        inner = ",\n".join(f"   {json.dumps(t)}: {json.dumps(f)}" for t, f in sorted(by_target.items()))
        lines.append(f"  {json.dumps(case)}: {{\n{inner}\n  }}")
    body = ",\n".join(lines)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{{\n "reason": {json.dumps(reason)},\n "figures": {{\n{body}\n }}\n}}\n', encoding="utf-8")


def merged(base: Table, now: Table, replaced: Collection[str], targets: Collection[str]) -> Table:
    """`base` with the figures of `now`, which stand for the cases `replaced` and for `targets` alone."""
    kept = {c: {t: f for t, f in by.items() if c not in replaced or t not in targets} for c, by in base.items()}
    both = {case: {**kept.get(case, {}), **now.get(case, {})} for case in {*kept, *now}}
    return {case: by_target for case, by_target in both.items() if by_target}


def compare(now: Table, base: Table | None, targets: Collection[str]) -> list[Row]:
    """A row for each case and target of either; without a baseline only rules are checked, and whole cases are OK."""
    rows = []
    for case in sorted({*now, *(base or {})}):
        for target in targets:
            new, old = now.get(case, {}).get(target), (base or {}).get(case, {}).get(target)
            if new is not None:
                rows.append(_judged(case, target, new, old, base is not None))
            elif old is not None:
                rows.append(Row(case, target, "GONE"))
    return rows


def _judged(case: str, target: str, new: Figures, old: Figures | None, known: bool) -> Row:
    rules = tuple(broken(case, target, new))
    if rules:
        return Row(case, target, "BROKEN", rules)
    if old is None:
        return Row(case, target, "NEW" if known else "OK")
    worse, better = tuple(_grown(old, new)), tuple(_grown(new, old))
    if not worse and not better:
        return Row(case, target, "OK")
    changes = [f"{name} {a} -> {b}" for name, a, b in worse] or [f"{name} {b} -> {a}" for name, a, b in better]
    if old["settings"] != new["settings"]:
        changes.append(f"{old['settings']} -> {new['settings']}")
    return Row(case, target, "WORSE" if worse else "BETTER", tuple(changes))


def _grown(old: Figures, new: Figures) -> Iterator[tuple[str, float, float]]:
    """Figures that are worse in `new` than in `old`, beyond their margins."""
    for name, (relative, least) in MARGINS.items():
        if new[name] - old[name] > max(relative * old[name], least):
            yield name, old[name], new[name]
    if old["matrix"] and not new["matrix"]:
        yield "matrix instructions", old["matrix"], new["matrix"]
    for access, bits in old["widths"].items():
        if new["widths"].get(access, bits) < bits:
            yield f"{access} bits", bits, new["widths"][access]
