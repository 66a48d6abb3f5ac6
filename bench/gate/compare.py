"""Every case in both versions: is the result right, and has it become slower?

Results are checked first, and a wrong one ends the gate before anything is timed. The reference is loaded twice, the
second time as the control. SLOW cases are measured once more, in versions loaded anew in another order; that second
finding stands.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.gate.blocks import blocks
from bench.gate.cases import Case, Missing, Ready
from bench.gate.clocks import Stopwatch
from bench.gate.load import Side, loaded
from bench.gate.trees import Tree
from bench.gate.verdict import Finding, Rule, decide

__all__ = ["VERDICTS", "Row", "WrongResultError", "compared", "exit_code", "measured", "sides_of"]

# verdict: what it does to the exit code
VERDICTS = {"SLOW": 1, "REMOVED": 1, "INCONCLUSIVE": 3, "CHANGED": 3, "OK": 0, "FASTER": 0, "NEW": 0}
ELSEWHERE = 0.05  # share of CPU time in other threads from which this thread's time is not the case's
ORDERS = ((0, 1, 2), (2, 1, 0))  # in which the reference, its second copy and the new version are loaded

Cases = Callable[[Side, Side], Iterable[Case]]


class WrongResultError(BenchError):
    """A version does not compute what it should; there is nothing to time."""

    exit_code = 2


@dataclass(frozen=True)
class Row:
    """One case: its verdict, why, and what was found where it was timed; `first` is the finding before a second one."""

    name: str
    verdict: str
    reason: str = ""
    found: Finding | None = None
    first: Finding | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compared(
    reference: Tree,
    new: Tree,
    cases: Cases,
    clock: Stopwatch,
    rule: Rule,
    *,
    seed: int = 0,
    progress: bool = True,
) -> list[Row]:
    """A row for each case of `cases(reference side, new side)`.

    Raises WrongResultError, naming version, case and error, when a result of either version is wrong.
    """
    found: dict[str, Row] = {}
    with sides_of((reference, reference, new), ORDERS[0]) as sides:
        listed = list(cases(sides[0], sides[2]))
        made = {case.name: _made(case, sides) for case in listed}
        for i, case in enumerate(listed):
            ready = made.pop(case.name)
            if isinstance(ready, Row):
                found[case.name] = ready
            else:
                _say(progress, f"[{i + 1}/{len(listed)}] {case.name}")
                found[case.name] = _row(case, measured(case.name, ready, clock, rule, seed))
    slow = [case for case in listed if found[case.name].verdict == "SLOW"]
    if slow:
        with sides_of((reference, reference, new), ORDERS[1]) as sides:
            for i, case in enumerate(c for c in cases(sides[0], sides[2]) if found[c.name].verdict == "SLOW"):
                _say(progress, f"[{i + 1}/{len(slow)}] once more, because slow: {case.name}")
                ready = _made(case, sides)
                assert not isinstance(ready, Row)
                again = measured(case.name, ready, clock, rule, seed + 1)
                found[case.name] = _row(case, again, found[case.name].found)
    return list(found.values())


def measured(name: str, ready: Sequence[Ready], clock: Stopwatch, rule: Rule, seed: int) -> Finding:
    """The finding for "reference", "again" and "new", in this order in `ready`."""
    numbers = np.random.default_rng([seed, zlib.crc32(name.encode())])
    makers = dict(zip(("reference", "again", "new"), (r.fresh for r in ready), strict=True))
    found = decide(blocks(makers, clock, numbers), rule, seed)
    if (share := clock.elsewhere()) > ELSEWHERE:
        reason = f"{share:.0%} of the CPU time was spent in other threads, which this clock does not see"
        return Finding("INCONCLUSIVE", reason, found.change, found.control, found.blocks)
    return found


def exit_code(rows: Iterable[Row]) -> int:
    """1 when a case is slow or gone, else 3 when one is undecided, else 0."""
    codes = {VERDICTS[row.verdict] for row in rows}
    return 1 if 1 in codes else max(codes, default=0)


@contextmanager
def sides_of(trees: Sequence[Tree], order: Sequence[int]) -> Iterator[list[Side]]:
    """The trees loaded in `order`, from copies of their own; the sides come in the order of the trees."""
    with tempfile.TemporaryDirectory() as place:
        copies = [trees[i].copy(Path(place) / str(i)) for i in order]
        with loaded(copies) as sides:
            for side in sides:
                side.module("quant")
            yield [sides[order.index(i)] for i in range(len(trees))]


def _made(case: Case, sides: Sequence[Side]) -> list[Ready] | Row:
    """The case in every version, its results right; or a row that says why the versions cannot be compared."""
    ready: list[Ready] = []
    lacks: dict[str, str] = {}
    for name, side in zip(("reference", "again", "new"), sides, strict=True):
        wrong = None
        try:
            ready.append(case.build(side))
            wrong = ready[-1].wrong()
        except (Missing, ImportError) as error:
            lacks[name] = f"{side.tree.label}: {error}"
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            wrong = f"{type(error).__name__}: {error}"
            if name != "new":
                return Row(case.name, "CHANGED", f"{side.tree.label} does not take the same inputs: {wrong}")
        if wrong:
            raise WrongResultError(f"{case.name}: wrong result in {side.tree.label}: {wrong}; nothing was timed")
    if len(lacks) == len(sides):
        return Row(case.name, "CHANGED", f"in neither version ({lacks['new']})")
    if lacks:
        return Row(case.name, "REMOVED" if "new" in lacks else "NEW", next(iter(lacks.values())))
    return ready


def _row(case: Case, found: Finding, first: Finding | None = None) -> Row:
    reason = found.reason
    if first is not None:
        confirmed = "confirmed by a second measurement" if found.verdict == "SLOW" else "not confirmed"
        reason = "; ".join(filter(None, (f"first measured {first.change}, {confirmed}", reason)))
    return Row(case.name, found.verdict, reason, found, first)


def _say(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr, flush=True)
