"""The tables of decisions 28 and 31 are those of the records."""

from __future__ import annotations

import pytest

from tests.causes import BUDGETS, HEADS, PAIRS, difference, made, place
from tests.paper_claims import ROOT


@pytest.mark.parametrize("name", HEADS)
def test_a_table_of_the_decisions_is_that_of_the_records(name: str) -> None:
    document = (ROOT / "DESIGN.md").read_text("utf-8")
    assert document[place(document, name)] == made()[name]


def test_every_row_of_the_causal_model_was_judged() -> None:
    for name, rows in (("budgets", len(BUDGETS) + 1), ("causes", len(PAIRS))):
        lines = made()[name].splitlines()[2:]
        assert len(lines) == rows
        columns = {"budgets": (2, 3), "causes": (3, 4)}[name]
        assert all("±" in line.split("|")[c] or "[" in line.split("|")[c] for line in lines for c in columns)


def test_a_difference_is_paired_and_of_the_first_less_the_second() -> None:
    def items(*values: float) -> dict[str, dict[str, dict[str, list[float]]]]:
        return {"accuracy": {"kl_wiki": {"items": list(values)}}}

    held = {("m", "a"): items(1.0, 2.0, 3.0), ("m", "b"): items(0.5, 1.5, 2.5)}
    assert difference(held, "m", "kl_wiki", "a", "b").startswith("+0.5")
    assert difference(held, "m", "kl_wiki", "b", "a").startswith("-0.5")
    assert difference(held, "m", "kl_wiki", "a", "c") == "–"  # noqa: RUF001
