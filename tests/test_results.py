"""The committed results are of one whole run of the default suite; every table and figure is made from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.catalog import known_names
from bench.experiment import expand, find
from bench.experiment_file import load as load_experiment
from bench.protocol import Protocol
from bench.records import read
from bench.reports.frames import Run
from bench.reports.plots import write_plots
from bench.reports.readme import load
from bench.reports.table import write_tables

RESULTS = Path(__file__).resolve().parents[1] / "results" / "cpu-2-cores"


@pytest.fixture(scope="module")
def records():
    return load(RESULTS)


def test_the_records_are_the_cells_of_the_default_suite_and_of_nothing_else(records):
    names = known_names()
    wanted = expand(load_experiment(find("default"), names, Protocol), names)
    ran = [tuple(r["cell"].values()) for r in records]
    assert sorted(ran) == sorted(tuple(cell.as_dict().values()) for cell in wanted)
    assert {r["status"] for r in records} == {"ok"}


def test_the_records_are_of_one_run_of_one_commit():
    good, bad = read(RESULTS / "records.jsonl")
    assert not bad
    assert len({r["provenance"]["commit"] for r in good}) == 1
    assert not any(r["provenance"]["dirty"] for r in good)
    assert len({tuple(r["provenance"]["argv"]) for r in good}) == 1
    cells = [tuple(r["cell"].values()) for r in good]
    assert len(cells) == len(set(cells))


def test_committed_tables_and_figures_are_made_from_the_committed_records(records, tmp_path):
    run = Run(records)
    made = {p.relative_to(tmp_path): p for p in write_tables(tmp_path / "tables", run)}
    made |= {p.relative_to(tmp_path): p for p in write_plots(tmp_path / "plots", run) if p.suffix == ".csv"}
    kept = {p.relative_to(RESULTS) for p in RESULTS.glob("*/*") if p.suffix not in (".png", ".svg")}
    assert kept == set(made)
    assert [str(name) for name in sorted(made) if (RESULTS / name).read_bytes() != made[name].read_bytes()] == []


def test_every_figure_has_its_picture():
    data = sorted(p.stem for p in (RESULTS / "plots").glob("*.csv"))
    for kind in ("png", "svg"):
        assert sorted(p.stem for p in (RESULTS / "plots").glob(f"*.{kind}")) == data


def test_the_unquantized_adapted_model_differs_from_itself_by_nothing(records):
    """The rows that all others are compared with: every divergence is exactly zero, every agreement one."""
    bases = [r["accuracy"] for r in records if r["cell"]["order"] == "lora"]
    found = {(name, judged[name]["value"]) for judged in bases for name in judged if name.startswith(("kl_", "top1_"))}
    assert {value for name, value in found if name.startswith("kl_")} == {0.0}
    assert {value for name, value in found if name.startswith("top1_")} == {1.0}
    assert {judged[name]["delta"] for judged in bases for name in judged if "delta" in judged[name]} == {0.0}
