"""What stands behind claims that are not found here: paired differences of `results/causes`, and of MiniLM's records.

`python -m tests.causes DESIGN.md` writes the two tables where they stand; `tests/test_causes.py` compares them. Each
row is a method less another: a step that changes one thing, or the two methods of a claim. KL on SmolLM2, embedding
cosine distance on MiniLM.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.measure.stats import stat
from bench.reports.readme import load
from bench.reports.stats import Stat, estimate_text
from tests.paper_claims import RESULTS, Judged, beneath

CAUSES = RESULTS.parent / "causes"
TEXTS = ("kl_reviews", "kl_wiki")
MINILM = "cosine_distance"
HEADS = {"budgets": "| budgets |", "causes": "| of | less |"}  # how the tables begin in the document

# (what, its budgets); all are Wanda at 70 %
BUDGETS = (
    ("OWL, M 5, lambda 0.08", "owl-wanda-70"),
    ("OWL, M 3", "control-wanda-70-owl-3"),
    ("OWL, M 10", "control-wanda-70-owl-10"),
    ("OWL, lambda 0.15", "control-wanda-70-owl-wide"),
    ("straight in depth, first block 62 %, last 78 %", "control-wanda-70-dense-in-front"),
    ("straight in depth, the other way", "control-wanda-70-dense-behind"),
)
# (of, less)
PAIRS = (
    ("uniform-int4-float-zero-g64", "uniform-int4-asym-g64"),
    ("hqq-int4-g64", "uniform-int4-float-zero-g64"),
    ("hqq-int4-g64", "uniform-int4-asym-g64"),
    ("hqq-int3-g64", "uniform-int3-asym-g64"),
    ("hqq-int3-g64", "gptq-int3-g64"),
    ("hadamard-nf4-g64-dq", "nf4-g64-dq"),
    ("higgs-4bit", "hadamard-nf4-g64-dq"),
    ("squeezellm-3bit", "gptq-int3-g64"),
    ("squeezellm-3bit", "awq-int3-g64"),
)


def difference(held: Judged, model: str, metric: str, of: str, less: str) -> str:
    """The paired difference and its interval; a dash where the run did not judge both."""
    if not {(model, of), (model, less)} <= set(held):
        return "–"  # noqa: RUF001
    a, b = (held[model, name]["accuracy"][metric]["items"] for name in (of, less))
    found = stat([x - y for x, y in zip(a, b, strict=True)], statistic="mean")
    return estimate_text(Stat(found["value"], found["low"], found["high"], len(a)), 3, signed=True)


def budgets(held: Judged) -> str:
    wanda = [held["smollm2", "wanda-70"]["accuracy"][text] for text in TEXTS]
    own = [estimate_text(Stat(m["value"], m["low"], m["high"], len(m["items"])), 4) for m in wanda]
    rows = [("Wanda, 70 % in every block", *own)]
    rows += [(what, *(difference(held, "smollm2", t, name, "wanda-70") for t in TEXTS)) for what, name in BUDGETS]
    return _markdown(("budgets", "reviews", "Wikipedia"), rows)


def causes(held: Judged, encoder: Judged) -> str:
    rows = [
        (
            f"`{of}`",
            f"`{less}`",
            *(difference(held, "smollm2", text, of, less) for text in TEXTS),
            difference(encoder, "minilm", MINILM, of, less),
        )
        for of, less in PAIRS
    ]
    return _markdown(("of", "less", "SmolLM2, reviews", "SmolLM2, Wikipedia", "MiniLM"), rows)


def _markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, [":--" if i == 0 or name == "less" else "--:" for i, name in enumerate(names)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def made() -> dict[str, str]:
    """Both tables from the records, by name."""
    held, encoder = beneath(load(CAUSES)), beneath(load(RESULTS))
    return {"budgets": budgets(held), "causes": causes(held, encoder)}


def place(document: str, name: str) -> slice:
    """Where the table of this name stands in the document."""
    start = document.index(HEADS[name])
    found = re.compile(r"(?:\|.*\n)+").match(document, start)
    assert found is not None
    return slice(start, found.end())


if __name__ == "__main__":
    path = Path(sys.argv[1])
    text = path.read_text("utf-8")
    for name, table in made().items():
        where = place(text, name)
        text = text[: where.start] + table + text[where.stop :]
    path.write_text(text, "utf-8")
