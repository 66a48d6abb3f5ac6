"""`bench compare`: what it joins, what it refuses, and what it says of a difference."""

import pytest

from bench.__main__ import main
from bench.records import FILE
from tests.bench.test_cli import NF4, made, save
from tests.bench.test_records import record


def test_compare_joins_two_folders(capsys, tmp_path):
    a, b = save(tmp_path / "a", made(1.0)), save(tmp_path / "b", made(1.5))
    assert main(["compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "+50.00" in out
    assert "only in" not in out
    assert "1 cells in both; 0 figures equal, 2 differ (2 without intervals)" in out


@pytest.mark.parametrize(
    ("ours", "theirs", "word", "told"),
    [
        ((1.0, 0.8, 1.2), (1.1, 0.9, 1.3), "within", "1 within the intervals of both"),
        ((1.0, 0.8, 1.2), (1.1, 1.05, 1.3), "outside", "1 outside of one"),
        ((1.0, 0.8, 1.05), (1.1, 0.9, 1.3), "outside", "1 outside of one"),
        ((1.0, 0.8, 1.2), (1.1, None, None), "", "1 without intervals"),
    ],
)
def test_a_difference_says_whether_it_is_within_both_intervals(ours, theirs, word, told, capsys, tmp_path):
    def one(stat):
        return made() | {"accuracy": {"loss": dict(zip(("value", "low", "high"), stat, strict=True))}, "speed": {}}

    a, b = save(tmp_path / "a", one(ours)), save(tmp_path / "b", one(theirs))
    assert main(["compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert f"0 figures equal, 1 differ ({told})" in out
    (row,) = (line for line in out.splitlines() if "+10.00" in line)
    assert row.split("+10.00")[1].strip() == word


def test_compare_names_the_cells_that_only_one_has(capsys, tmp_path):
    more = [record(f"k{i}", method=f"x{i:02}") for i in range(12)]
    a, b = save(tmp_path / "a", made(), *more), save(tmp_path / "b", made(), record("y", method="y"))
    assert main(["compare", str(a), str(b)]) == 0
    lines = capsys.readouterr().out.splitlines()
    ten = [f"  m/t/beneath/x{i:02}/0" for i in range(10)]
    assert lines[:12] == [f"12 cells only in A ({a}):", *ten, "  and 2 more"]
    assert lines[12:14] == [f"1 cell only in B ({b}):", "  m/t/beneath/y/0"]
    assert lines[-1].startswith("1 cells in both; 2 figures equal, 0 differ")


def test_compare_blames_the_side_that_is_wrong(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def says(*words):
        assert main(["compare", *words]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert says("a", "b").startswith("error: A 'a': no such folder, and as a cell: no results under results/ yet")
    save(tmp_path / "results" / "r", made())
    good = "results/r"
    assert says(good, "nowhere").startswith("error: B 'nowhere': no such folder. A is a results folder, so B must be")
    assert says("nowhere", good).startswith("error: A 'nowhere': no such folder. B is a results folder, so A must be")
    assert says(good, f"{good}/{FILE}").startswith(f"error: B '{good}/{FILE}': it is a file: give the folder")
    assert says(NF4, "m/t/beneath/nf5-g64/0").startswith("error: B 'm/t/beneath/nf5-g64/0': no such folder, and as a")
    assert says("x", NF4).startswith("error: A 'x': no such folder, and as a cell: unknown cell 'x'")
    assert says(NF4, NF4, "--out", "nowhere") == f"error: --out: no records in nowhere/{FILE}\n"
    (tmp_path / "empty").mkdir()
    assert says(good, "empty") == f"error: no records in empty/{FILE}\n"


def test_times_of_different_processors_are_not_compared(capsys, tmp_path):
    a, b = save(tmp_path / "a", made(1.0)), save(tmp_path / "b", made(1.5, device="cpu B"))
    assert main(["compare", str(a), str(b)]) == 2
    out, err = capsys.readouterr()
    assert "1 differ" in out
    assert err.startswith("error: refusing to compare speed of cpu A with 2 threads (")
    assert main(["compare", str(a), str(b), "--no-times"]) == 0


def test_different_protocols_are_not_compared(capsys, tmp_path):
    a, b = save(tmp_path / "a", made()), save(tmp_path / "b", made(steps=4))
    assert main(["compare", str(a), str(b)]) == 2
    assert f"error: {NF4} cannot be compared: the protocols differ in steps 3 and 4" in capsys.readouterr().err
