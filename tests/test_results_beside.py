"""What stands in `results/` beside the default suite is made from its records, too, and the documents quote it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.records import read
from bench.reports import rates, sensitivity
from bench.reports.frames import Run
from bench.reports.plots import write_plots
from bench.reports.readme import load
from bench.reports.table import write_tables
from bench.reports.tables.recovery import share_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
SUITES = ("calibration", "causes", "gradual", "peers", "recovery", "starts")


@pytest.mark.parametrize("name", SUITES)
def test_tables_and_figures_of_a_suite_are_made_from_its_records(name, tmp_path):
    run = Run(load(RESULTS / name))
    made = {p.relative_to(tmp_path): p for p in write_tables(tmp_path / "tables", run)}
    made |= {p.relative_to(tmp_path): p for p in write_plots(tmp_path / "plots", run) if p.suffix == ".csv"}
    kept = {p.relative_to(RESULTS / name) for p in (RESULTS / name).glob("*/*") if p.suffix not in (".png", ".svg")}
    assert kept == set(made)
    assert [str(path) for path in sorted(made) if (RESULTS / name / path).read_bytes() != made[path].read_bytes()] == []


@pytest.mark.parametrize("name", SUITES)
def test_records_of_a_suite_are_of_one_commit_without_changes_of_its_own(name):
    good, bad = read(RESULTS / name / "records.jsonl")
    assert not bad
    assert len({r["provenance"]["commit"] for r in good}) == 1
    assert not any(r["provenance"]["dirty"] for r in good)


@pytest.mark.parametrize(
    ("name", "file", "write"),
    [("rates", "rates.jsonl", rates.write), ("sensitivity", sensitivity.FILE, sensitivity.write)],
)
def test_tables_of_rates_and_of_sensitivity_are_made_from_their_records(name, file, write, tmp_path):
    shutil.copy(RESULTS / name / file, tmp_path / file)
    made = {p.relative_to(tmp_path): p for p in write(tmp_path) if p.suffix not in (".png", ".svg")}
    kept = {p.relative_to(RESULTS / name) for p in (RESULTS / name).glob("*/*") if p.suffix not in (".png", ".svg")}
    assert kept == set(made)
    assert [str(path) for path in sorted(made) if (RESULTS / name / path).read_bytes() != made[path].read_bytes()] == []


def test_the_best_start_at_least_halves_the_gap_of_qlora_and_the_readme_has_its_interval():
    """At two bits on the causal model, on the texts that adapters are trained on."""
    run = Run(load(RESULTS / "recovery"))
    rows = {row.order: row for row in run.select("qlora", "eora", "chained")}
    shares = {order: share_of(run, row, "perplexity_reviews", "causal") for order, row in rows.items()}
    assert shares["qlora"].value == 1
    assert min(shares[order].high for order in ("eora", "chained")) < 0.5  # with 95 % of confidence
    assert run.select("chained")[0].seeds == run.select("qlora")[0].seeds == tuple("012345")
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    for order in ("eora", "chained"):
        reach = max(shares[order].high - shares[order].value, shares[order].value - shares[order].low)
        assert f"`{order}` {shares[order].value:.2f} ± {reach:.2f}" in readme
