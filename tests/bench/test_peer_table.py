"""The table of peers pairs each with the method it names, item by item."""

from __future__ import annotations

import pytest

from bench.reports.frames import Run
from bench.reports.tables.peers import peers
from tests.bench.sample_records import record

ITEMS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def judged(method: str, items: list[float], name: str | None = None, **settings: str) -> dict[str, object]:
    made = record("smollm2", "beneath", method, settings=settings)
    made["cell"]["method"] = name or method
    made["accuracy"]["kl_wiki"]["items"] = items
    return made


def test_each_peer_stands_beside_the_method_that_it_names() -> None:
    theirs = judged("nf4", [x + 0.05 for x in ITEMS], "peer-lib-nf4", ours="nf4", package="lib", version="1.2")
    lost = judged("nf3", ITEMS, "peer-lib-nf3", ours="nf3", package="lib", version="1.2")
    (made,) = peers(Run([theirs, lost, judged("nf4", ITEMS), judged("nf2", ITEMS)]))
    (row,) = made.rows
    assert (row["peer"], row["ours"], row["library"]) == ("peer-lib-nf4", "nf4", "lib 1.2")
    assert row["difference"] == pytest.approx(-0.05)
    assert row["difference_low"] == pytest.approx(-0.05)
    assert row["peer_bits_per_weight"] == row["ours_bits_per_weight"]


def test_a_difference_within_its_interval_is_marked_and_without_items_unknown() -> None:
    theirs = judged("nf4", ITEMS[::-1], "peer-lib-nf4", ours="nf4", package="lib", version="1.2")
    (made,) = peers(Run([theirs, judged("nf4", ITEMS)]))
    assert "≈" in made.markdown()
    (bare,) = peers(Run([theirs, judged("nf4", [])]))
    assert bare.rows[0]["difference"] is None


def test_without_peers_there_is_no_table() -> None:
    assert peers(Run([judged("nf4", ITEMS)])) == []
