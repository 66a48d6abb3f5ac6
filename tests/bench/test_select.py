"""Patterns: what they choose, and the exact words when they choose nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UsageError
from bench.select import matches, seeds, select, split

KNOWN = ("fp32", "uniform-int4-g64", "uniform-int4-g32", "uniform-int8-channel", "nf4-g64", "nf4-g32")


def test_patterns_apply_from_left_to_right_and_keep_the_known_order():
    chosen = select("--methods", split("nf4*, uniform-int4*,-*-g32"), KNOWN, "methods")
    assert chosen == ["uniform-int4-g64", "nf4-g64"]
    assert select("--methods", split("nf4*,-*-g32,nf4-g32"), KNOWN, "methods") == ["nf4-g64", "nf4-g32"]


def test_a_list_that_begins_with_an_exclusion_begins_from_everything():
    assert select("--methods", ["-uniform*"], KNOWN, "methods") == ["fp32", "nf4-g64", "nf4-g32"]


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("unifrom*", " Did you mean 'uniform*'?"),
        ("nf5-g64", " Did you mean 'nf4-g64'?"),
        ("zzz", f" Known: {', '.join(KNOWN)}"),
        ("-unifrom*", " Did you mean 'uniform*'?"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_the_count(pattern, hint):
    with pytest.raises(UsageError) as error:
        select("--methods", [pattern], KNOWN, "methods")
    assert str(error.value) == f"--methods {pattern!r} matched 0 of 6 methods.{hint}"
    assert error.value.exit_code == 2


def test_many_names_are_not_listed_in_an_error():
    with pytest.raises(UsageError, match=r"matched 0 of 13 methods\. See them all: bench list methods$"):
        select("--methods", ["zzz"], [f"name-{i}" for i in range(13)], "methods")


def test_taking_everything_out_is_an_error():
    with pytest.raises(UsageError, match="takes out every one of 6 methods"):
        select("--methods", ["*", "-*"], KNOWN, "methods")


@given(st.lists(st.sampled_from(["*", "nf4*", "-nf4*", "-*-g32", "uniform*", "fp32", "-fp32"]), min_size=1))
def test_select_and_matches_agree(patterns):
    try:
        chosen = select("x", patterns, KNOWN, "methods")
    except UsageError:
        chosen = []
    assert chosen == [name for name in KNOWN if matches(name, patterns)]


def test_seeds():
    assert seeds("0,2,0") == (0, 2)
    for text in ("-1", "a", "1.5", ","):
        with pytest.raises(UsageError):
            seeds(text)


def test_what_other_libraries_are_installed_does_not_change_a_suite():
    both = (*KNOWN, "peer-hqq-4bit", "peer-bnb-nf4", "control-nf4-moved-1")
    for patterns in (["*"], ["-uniform*"], ["*4*", "-fp32"]):
        assert select("--methods", patterns, both, "methods") == select("--methods", patterns, KNOWN, "methods")
        assert [n for n in both if matches(n, patterns)] == [n for n in KNOWN if matches(n, patterns)]
    assert select("--methods", ["peer-*", "-peer-hqq*"], both, "methods") == ["peer-bnb-nf4"]
    assert select("--methods", ["control-*"], both, "methods") == ["control-nf4-moved-1"]
    assert matches("peer-hqq-4bit", ["peer-*"])
    assert not matches("control-nf4-moved-1", ["*moved*"])
