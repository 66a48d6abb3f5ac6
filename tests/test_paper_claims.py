"""Orderings that papers report and that the committed records show, over paired differences of the same texts."""

from __future__ import annotations

import pytest

from bench.reports.readme import load
from tests.paper_claims import (
    CLAIMS,
    HOLDS,
    JUDGED,
    RESULTS,
    REVERSED,
    ROOT,
    UNKNOWN,
    Judged,
    beneath,
    bits,
    found,
    replaced,
    shown,
    table,
    verdict,
)

BOTH = ("kl_wiki", "kl_reviews")
CALIBRATED_ON = ("kl_reviews",)  # texts of the domain that the calibration is of

# (nearer, than, the texts on which it must hold): SmolLM2, 95 % interval of the paired difference below 0
ORDERINGS = [
    ("gptq-int4-g64", "uniform-int4-g64", BOTH),
    ("gptq-int3-g64", "uniform-int3-g64", BOTH),
    ("gptq-nf4-g64", "nf4-g64", BOTH),
    ("awq-int4-g64", "uniform-int4-asym-g64", BOTH),
    ("awq-int3-g64", "uniform-int3-asym-g64", BOTH),
    ("squeezellm-4bit", "nf4-g64", BOTH),
    ("squeezellm-3bit", "kmeans-3bit-row", BOTH),
    ("mixed-4bit", "uniform-int4-asym-g64", BOTH),
    ("mixed-3bit", "uniform-int3-asym-g64", BOTH),
    ("smooth-w8a8", "w8a8", BOTH),
    ("nf4-g64-dq", "fp4-g64-dq", BOTH),
    ("sparsegpt-50", "prune-50", BOTH),
    ("wanda-50", "prune-50", BOTH),
    ("sparsegpt-50", "wanda-50", CALIBRATED_ON),
]

# the same grid and the same group: the left one may not have more bits; AWQ stores one factor a column beside its codes
FACTORS = 0.03


@pytest.fixture(scope="module")
def held() -> Judged:
    return beneath(load(RESULTS))


@pytest.mark.parametrize(
    ("nearer", "than", "text"), [(a, b, text) for a, b, texts in ORDERINGS for text in texts], ids=str
)
def test_the_real_model_shows_the_ordering(held: Judged, nearer: str, than: str, text: str) -> None:
    assert found(held, "smollm2", text, nearer, than) == HOLDS
    assert bits(held, "smollm2", nearer) <= bits(held, "smollm2", than) + FACTORS


def test_squeezellm_is_nearer_than_nf4_at_no_more_bits(held: Judged) -> None:
    for model in ("smollm2", "minilm"):
        assert bits(held, model, "squeezellm-4bit") <= bits(held, model, "nf4-g64")


def test_the_readme_says_of_every_claim_what_the_records_say(held: Judged) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert shown(readme) == table(held), "run: python -m tests.paper_claims README.md"
    assert replaced(readme, table(held)) == readme


def test_some_claims_hold_and_some_do_not(held: Judged) -> None:
    """A table of nothing but successes would be a table of what was looked for."""
    said = {found(held, *judged, nearer, than) for _, nearer, than in CLAIMS for judged in JUDGED}
    assert {HOLDS, REVERSED} <= said


def test_a_verdict_is_of_the_paired_difference() -> None:
    texts = [0.1, 0.5, 0.2, 0.9, 0.3, 0.6, 0.4, 0.8]
    lower = [x - 0.01 - 0.001 * i for i, x in enumerate(texts)]  # far closer to each text than the texts to each other
    mixed = [x + 0.1 * (-1) ** i for i, x in enumerate(texts)]
    assert (verdict(lower, texts), verdict(texts, lower), verdict(mixed, texts)) == (HOLDS, REVERSED, UNKNOWN)
