"""The protocol's learning rates are those that the committed runs on texts judged nowhere settled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.learning_rates import WAYS, current, page, told
from bench.protocol import Protocol

RESULTS = Path(__file__).resolve().parents[1] / "results" / "learning-rates"


@pytest.fixture(scope="module")
def runs():
    return [json.loads(line) for line in (RESULTS / "learning-rates.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize(("model", "order", "field"), WAYS)
def test_no_rate_that_was_tried_is_better_than_the_protocols(runs, model, order, field):
    tried = current(runs, model, order, field)
    assert [r["protocol"][field] for r in tried] == [r["rate"] for r in tried]
    (mine,) = [r for r in tried if r["rate"] == getattr(Protocol(), field)]
    assert tried[0]["rate"] < mine["rate"] < tried[-1]["rate"]
    best = min((r for r in tried if r["items"] is not None), key=lambda r: sum(r["items"]))
    assert told(mine, best) == "best" or told(mine, best).endswith("≈")


def test_the_page_is_made_of_the_runs_and_they_say_where_they_are_from(runs):
    assert (RESULTS / "learning-rates.md").read_text("utf-8") == page(runs)
    assert not any(r["provenance"]["dirty"] for r in runs)
