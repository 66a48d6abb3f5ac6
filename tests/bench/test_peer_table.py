"""The table of peers pairs each with the method it names, item by item."""

from __future__ import annotations

import pytest

from bench.reports.frames import Run
from bench.reports.tables.peers import peers
from tests.bench.sample_records import record

ITEMS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def judged(method: str, items: list[float], name: str | None = None, **settings: object) -> dict[str, object]:
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


def test_methods_at_other_settings_stand_below_and_say_so() -> None:
    beside = {"ours": "nf4", "beside": ["nf2"], "package": "lib", "version": "1.2"}
    theirs = judged("nf3", ITEMS, "peer-lib-nf4", **beside)
    (made,) = peers(Run([theirs, judged("nf2", ITEMS), judged("nf4", ITEMS)]))
    assert [(row["ours"], row["settings"]) for row in made.rows] == [("nf4", "the same"), ("nf2", "other")]


def test_bits_if_packed_replace_those_of_the_codes_and_nothing_else() -> None:
    settings = {"ours": "nf4", "package": "lib", "version": "1.2"}
    theirs = judged("nf4", ITEMS, "peer-lib-nf4", **settings, code_bits=3)
    parts = theirs["memory"]["parts_bytes"]  # type: ignore[index]
    stored, weights = theirs["memory"]["bits_per_weight"], theirs["memory"]["n_quantized_weights"]  # type: ignore[index]
    (made,) = peers(Run([theirs, judged("nf4", ITEMS)]))
    assert made.rows[0]["peer_bits_if_packed"] == pytest.approx(3 + stored - 8 * parts["codes"] / weights)
    assert "if packed" in made.markdown()
    (made,) = peers(Run([judged("nf4", ITEMS, "peer-lib-nf4", **settings), judged("nf4", ITEMS)]))
    assert made.rows[0]["peer_bits_if_packed"] is None


def moved(draw: int, by: float, of: str = "nf4") -> dict[str, object]:
    items = [x + by for x in ITEMS]
    return judged("nf4", items, f"control-{of}-moved-{draw}", of=of, amount=1e-3, draw=draw)


def test_a_difference_between_equals_is_explained_only_where_its_interval_excludes_zero() -> None:
    settings = {"ours": "nf4", "differs": "it rounds down", "package": "lib", "version": "1.2"}
    worse = judged("nf4", [x - 0.05 for x in ITEMS], "peer-lib-nf4", **settings)
    ours = judged("nf4", ITEMS)
    (made,) = peers(Run([worse, ours]))
    why = "it rounds down; our relative error is +0.00 % from its"
    assert made.rows[0]["why"] == why
    assert f"peer-lib-nf4 and nf4: {why}." in made.notes
    (made,) = peers(Run([judged("nf4", ITEMS[::-1], "peer-lib-nf4", **settings), ours]))
    assert made.rows[0]["why"] == ""
    assert not any("it rounds down" in note for note in made.notes)


@pytest.mark.parametrize(("far", "within"), [(-0.06, True), (0.06, True), (0.04, False)])
def test_copies_with_other_roundings_tell_whether_a_difference_is_one_of_luck(far: float, within: bool) -> None:
    settings = {"ours": "nf4", "package": "lib", "version": "1.2"}
    worse = judged("nf4", [x - 0.05 for x in ITEMS], "peer-lib-nf4", **settings)
    others = [moved(1, 0.01), moved(2, far), moved(1, 9.0, of="nf3")]
    (made,) = peers(Run([worse, judged("nf4", ITEMS), *others]))
    (row,) = made.rows
    assert f"scales moved at random by 0.1 % differ from it by +0.010, {far:+.3f}" in row["why"]
    assert ("at least one of them strays as far as this difference" in row["why"]) == within


def test_a_control_stands_beside_a_peer_and_in_no_other_table() -> None:
    settings = {"ours": "control-nf4", "package": "lib", "version": "1.2"}
    run = Run([judged("nf4", ITEMS, "peer-lib-nf4", **settings), judged("nf4", ITEMS, "control-nf4")])
    (made,) = peers(run)
    assert made.rows[0]["ours"] == "control-nf4"
    assert [r.method for r in run.rows] == ["peer-lib-nf4"]
    assert [r.method for r in run.controls] == ["control-nf4"]


def test_without_peers_there_is_no_table() -> None:
    assert peers(Run([judged("nf4", ITEMS)])) == []
