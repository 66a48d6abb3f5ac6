"""What papers claim of their methods, as pairs: A stays nearer to the unquantized model than B. Do the records agree?

`python -m tests.paper_claims README.md` writes the table below its heading; `tests/test_paper_claims.py` compares it.
A pair holds on a text when the paired difference over the same items is below 0 beyond its 95 % interval.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measure.stats import stat
from bench.reports.readme import load

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "cpu-2-cores"
HEADING = "## Claims of papers, measured here"
JUDGED = (("smollm2", "kl_wiki"), ("smollm2", "kl_reviews"), ("minilm", "cosine_distance"))
HOLDS, UNKNOWN, REVERSED, ABSENT = "holds", "≈", "reversed", "–"  # noqa: RUF001

# (whose claim, nearer, than)
CLAIMS = (
    ("GPTQ", "gptq-int4-g64", "uniform-int4-g64"),
    ("GPTQ", "gptq-int3-g64", "uniform-int3-g64"),
    ("AWQ", "awq-int4-g64", "uniform-int4-asym-g64"),
    ("AWQ", "awq-int3-g64", "uniform-int3-asym-g64"),
    ("AWQ", "awq-int4-g64", "gptq-int4-g64"),
    ("AWQ", "awq-int3-g64", "gptq-int3-g64"),
    ("SqueezeLLM", "squeezellm-4bit", "kmeans-4bit-row"),
    ("SqueezeLLM", "squeezellm-4bit", "nf4-g64"),
    ("SqueezeLLM", "squeezellm-3bit", "gptq-int3-g64"),
    ("SqueezeLLM", "squeezellm-3bit", "awq-int3-g64"),
    ("SqueezeLLM", "squeezellm-3bit-outliers", "squeezellm-3bit"),
    ("HAWQ", "mixed-4bit", "uniform-int4-asym-g64"),
    ("HAWQ", "mixed-3bit", "uniform-int3-asym-g64"),
    ("SmoothQuant", "smooth-w8a8", "w8a8"),
    ("QLoRA", "nf4-g64-dq", "fp4-g64-dq"),
    ("BOF4", "bof4s-g64-dq", "nf4-g64-dq"),
    ("APoT", "apot-4bit-g64", "uniform-int4-g64"),
    ("NVFP4", "nvfp4", "mxfp4"),
    ("HQQ", "hqq-int4-g64", "uniform-int4-asym-g64"),
    ("HQQ", "hqq-int4-g64", "uniform-int4-float-zero-g64"),
    ("HQQ", "hqq-int3-g64", "gptq-int3-g64"),
    ("HIGGS", "higgs-4bit", "nf4-g64-dq"),
    ("GuidedQuant", "lnq-3bit", "squeezellm-3bit"),
    ("SparseGPT", "sparsegpt-50", "prune-50"),
    ("SparseGPT", "sparsegpt-50", "wanda-50"),
    ("Wanda", "wanda-50", "prune-50"),
    ("OWL", "owl-wanda-70", "wanda-70"),
)

Judged = dict[tuple[str, str], dict[str, Any]]


def beneath(records: Sequence[dict[str, Any]]) -> Judged:
    """By model and method, the record of the method beneath the trained adapter."""
    return {(r["cell"]["model"], r["cell"]["method"]): r for r in records if r["cell"]["order"] == "beneath"}


def bits(held: Judged, model: str, method: str) -> float:
    return float(held[model, method]["memory"]["bits_per_weight"])


def verdict(nearer: Sequence[float], than: Sequence[float]) -> str:
    """Of two lists of divergences of the same items."""
    change = stat([a - b for a, b in zip(nearer, than, strict=True)], statistic="mean")
    low, high = change["low"], change["high"]
    return UNKNOWN if low is None or high is None or low <= 0 <= high else HOLDS if high < 0 else REVERSED


def found(held: Judged, model: str, metric: str, nearer: str, than: str) -> str:
    """The verdict on one text; `ABSENT` where the run did not judge both methods on that model."""
    if not {(model, nearer), (model, than)} <= set(held):
        return ABSENT
    return verdict(*(held[model, name]["accuracy"][metric]["items"] for name in (nearer, than)))


def table(held: Judged) -> str:
    """The claims in Markdown; bits are those of SmolLM2, or of MiniLM where only that was judged."""
    names = ("claimed by", "nearer", "than", "bits/weight", "SmolLM2, Wikipedia", "SmolLM2, reviews", "MiniLM")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for paper, nearer, than in CLAIMS:
        model = "smollm2" if {("smollm2", nearer), ("smollm2", than)} <= set(held) else "minilm"
        sizes = ", ".join(dict.fromkeys(f"{bits(held, model, name):.4g}" for name in (nearer, than)))
        verdicts = " | ".join(found(held, *judged, nearer, than) for judged in JUDGED)
        lines.append(f"| {paper} | `{nearer}` | `{than}` | {sizes} | {verdicts} |")
    return "\n".join(lines) + "\n"


def shown(readme: str) -> str:
    """The table that stands below the heading."""
    return _where(readme).group(0)


def replaced(readme: str, made: str) -> str:
    start, end = _where(readme).span()
    return readme[:start] + made + readme[end:]


def _where(readme: str) -> re.Match[str]:
    match = re.compile(r"(?:^\|.*\n)+", re.M).search(readme, readme.index(HEADING))
    if match is None:
        raise ValueError(f"no table below {HEADING!r}")
    return match


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(replaced(path.read_text(encoding="utf-8"), table(beneath(load(RESULTS)))), encoding="utf-8")
