"""Laws of the tables: one set of numbers in every format, ranks, marks, text from records, missing pieces."""

from __future__ import annotations

import copy
import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bench.reports import terminal_table, write
from bench.reports.escape import csv_text, markdown_text, plot_text, tex_text
from bench.reports.frames import Run
from bench.reports.stats import DISTURBED, MISSING, SAME, Stat, estimate_text, number_text, pool
from bench.reports.table import TABLES, Table
from bench.reports.terminal import fit
from tests.bench.sample_records import METHODS, record, sample, stat

HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "x & y",
    "_under_ *star*",
    "=cmd()",
    "$x^2$ {%#~}\\",
    "\u202eright",
    "n" * 9000,
]


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(sample())


def tables(run: Run) -> list[Table]:
    return [made for name in sorted(TABLES) for made in TABLES[name](run)]


def markdown_cells(text: str) -> list[list[str]]:
    """Rows of the only table in `text`, heading first, the rule left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [rows[0], *rows[2:]]


def latex_cells(text: str) -> list[list[str]]:
    body = text.split("\\toprule\n")[1].split("\\bottomrule")[0].replace("\\midrule\n", "")
    return [[c.strip() for c in re.split(r"(?<!\\)&", row)] for row in body.split(" \\\\\n") if row.strip()]


def number(text: str) -> float | None:
    """The value that a cell shows, whatever follows it."""
    found = re.match(r"\(?([+-]?[\d.]+(?:e[+-]?\d+)?)(?: ± [\d.]+\)(e-?\d+))?", text)
    return float(found[1] + (found[2] or "")) if found else None


def test_every_format_shows_the_number_of_the_frame(run: Run) -> None:
    compared = 0
    for made in tables(run):
        raw = list(csv.DictReader(io.StringIO(made.csv())))
        md, tex = markdown_cells(made.markdown_page()), latex_cells(made.latex())
        assert len(md) == len(tex) == len(raw) + 1, made.name
        for line, md_row, tex_row in zip(raw, md[1:], tex[1:], strict=True):
            assert len(md_row) == len(tex_row) == len(made.used())
            for column, md_cell, tex_cell in zip(made.used(), md_row, tex_row, strict=True):
                plain_tex = (
                    tex_cell.replace("$\\pm$", "±")
                    .replace("$\\approx$", SAME)
                    .replace("\\dag{}", DISTURBED)
                    .replace("--", MISSING)
                )
                if column.text:
                    continue
                assert plain_tex == md_cell
                shown, stored = number(md_cell), line[column.key]
                if shown is None:
                    assert (stored, md_cell) == ("", MISSING)
                    continue
                value = float(stored) * column.scale
                ends = [float(line[e]) for e in (f"{column.key}_low", f"{column.key}_high") if line.get(e)]
                half = max((abs(e * column.scale - value) for e in ends), default=0.0)
                # cut at the interval's last digit: half a unit is at most 0.5 / 3.545 of the half-width
                by_digits = 0.501 * 10 ** (1 - column.digits) * abs(value) if column.digits else 0.501
                assert abs(shown - value) <= (0.145 * half if half else by_digits), (column, md_cell)
                compared += 1
    assert compared > 1000


def test_equal_records_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    records = sample()
    first = write(tmp_path / "a", records, plots=False)
    second = write(tmp_path / "b", records[::-1], plots=False)
    assert [p.name for p in first] == [p.name for p in second]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_rows_are_ranked_by_the_metric_of_their_kind(run: Run) -> None:
    for kind, key in (("encoder", "cosine_distance"), ("causal", "kl_wiki_nats_per_token")):
        (made,) = TABLES[f"methods-{kind}"](run)
        values = made.frame[key].tolist()
        assert values == sorted(values)
        assert set(made.frame["method"]) == set(METHODS)


def test_a_run_on_another_text_is_ranked_by_that_text() -> None:
    """Tiny models are judged on text that the repository carries, not on Wikipedia."""
    records = [record("smollm2", "beneath", method) for method in ("nf2", "nf4")]
    for one in records:
        one["accuracy"] = {f"{m}_alice": one["accuracy"][f"{m}_wiki"] for m in ("perplexity", "kl", "top1")}
    (made,) = TABLES["methods-causal"](Run(records))
    heading, *rows = markdown_cells(made.markdown_page())
    assert "KL, Alice (nats/token)" in heading
    assert "Δ perplexity, Alice" in heading
    assert [row[heading.index("method")] for row in rows] == ["nf4", "nf2"]
    assert [row[heading.index("rank")] for row in rows] == ["1", "2"]


@pytest.mark.parametrize(
    ("low", "high", "marked"), [(-0.1, 0.5, True), (0.0, 0.5, True), (0.1, 0.5, False), (-0.5, -0.1, False)]
)
def test_a_difference_is_marked_exactly_when_its_interval_contains_zero(low: float, high: float, marked: bool) -> None:
    text = estimate_text(Stat((low + high) / 2, low, high), signed=True, neutral=0.0)
    assert text.endswith(SAME) == marked


def test_the_accuracy_column_carries_the_mark_of_its_own_row() -> None:
    same = record("minilm", "beneath", "nf4")
    same["accuracy"]["accuracy"] |= {"delta": -0.004, "delta_low": -0.012, "delta_high": 0.004}
    worse = record("minilm", "beneath", "nf2")
    worse["accuracy"]["accuracy"] |= {"delta": -0.04, "delta_low": -0.05, "delta_high": -0.03}
    (made,) = TABLES["methods-encoder"](Run([same, worse]))
    heading, *rows = markdown_cells(made.markdown_page())
    at = heading.index("Δ accuracy (points)")
    assert [row[at] for row in rows] == ["-0.4 ± 0.8 ≈", "-4.0 ± 1.0"]


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (26.873, 0.412, "26.9 ± 0.4"),
        (0.28613, 0.00123, "0.2861 ± 0.0012"),
        (1234.5, 300.0, "1230 ± 300"),
        (0.00000433, 0.00000003, "(4.330 ± 0.030)e-6"),
        (80.21, 2.5, "80.2 ± 2.5"),
    ],
)
def test_digits_are_limited_by_the_interval(value: float, half: float, text: str) -> None:
    assert estimate_text(Stat(value, value - half, value + half)) == text


def test_zero_and_unknown_are_not_the_same() -> None:
    assert (number_text(0.0), number_text(None), estimate_text(Stat())) == ("0", MISSING, MISSING)


def test_pooling_seeds_keeps_the_spread_of_the_items_and_adds_that_of_the_seeds() -> None:
    """The items are the same for every seed, so two equal seeds are no better than one."""
    one = Stat(0.8, 0.7, 0.9, 100)
    assert pool([one, one]) == Stat(0.8, pytest.approx(0.7), pytest.approx(0.9), 100)
    apart = pool([one, Stat(0.9, 0.8, 1.0, 100)])
    assert apart.value == pytest.approx(0.85)
    assert apart.high is not None
    # by hand: sqrt(0.1^2 + 12.706^2 * 0.005 / 2), Student's t of one degree of freedom
    assert apart.high - 0.85 == pytest.approx(0.6431, abs=2e-4)


@pytest.mark.parametrize("seeds", [3, 6])
def test_the_interval_over_seeds_covers_what_it_should_for_few_of_them(seeds: int) -> None:
    """Where only the seeds scatter, 95 % of 2000 intervals hold the mean; by the normal quantile 82 and 90 % would."""
    rng = np.random.default_rng(seeds)
    pooled = [pool([Stat(x, x, x) for x in rng.normal(0, 1, seeds)]) for _ in range(2000)]
    assert np.mean([s.low <= 0 <= s.high for s in pooled]) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_stay_text_in_every_format(text: str, tmp_path: Path) -> None:
    bad = record("minilm", "beneath", "nf4")
    bad["cell"] = bad["cell"] | {"method": text, "model": text}
    failed = copy.deepcopy(bad) | {"status": "failed", "reason": text}
    failed["cell"]["seed"] = 1
    for path in write(tmp_path, [bad, record("minilm", "beneath", "nf2"), failed], plots=False):
        content = path.read_text(encoding="utf-8")
        assert "<script>" not in content or path.suffix in (".csv", ".tex")
        assert "\u202e" not in content
        if path.suffix == ".csv":
            rows = list(csv.reader(io.StringIO(content)))
            assert len({len(row) for row in rows}) == 1
            assert not any(cell.startswith("=") for row in rows for cell in row)
        if path.suffix == ".md" and path.name != "README.md":
            assert len({len(row) for row in markdown_cells(content)}) == 1
            assert max(map(len, content.splitlines())) < 20_000
        if path.suffix == ".tex":
            assert len({len(row) for row in latex_cells(content)}) == 1
            assert content.count("{") - content.count("\\{") == content.count("}") - content.count("\\}")
    shown = Console(width=100, file=io.StringIO())
    shown.print(terminal_table([bad], 100))


def test_escapes() -> None:
    assert markdown_text("a|b_<i>") == r"a\|b\_&lt;i&gt;"
    assert tex_text(r"50 % & _{x}\ ±≈") == r"50 \% \& \_\{x\}\textbackslash{} $\pm$$\approx$"
    assert csv_text("=1+1") == "'=1+1"
    assert csv_text("-1") == "'-1"
    assert plot_text("模 ok", 10) == "? ok"


@pytest.mark.parametrize(
    "block", ["memory", "training_memory", "speed", "accuracy", "weights", "training", "provenance"]
)
@pytest.mark.parametrize("gone", [None, {}, "text", []])
def test_a_missing_block_is_a_dash_and_never_an_error(block: str, gone: Any, tmp_path: Path) -> None:
    records = sample()[::3]
    for one in records[::2]:
        one[block] = gone
    write(tmp_path, records, plots=False)
    terminal_table(records, 80)


def test_a_null_with_a_reason_is_a_dash() -> None:
    one = record("minilm", "beneath", "nf4")
    one["accuracy"]["accuracy"] = {"value": None, "reason": "no labels"}
    one["accuracy"]["cosine_distance"] = stat(0.1, 0.01, 600)
    (made,) = TABLES["methods-encoder"](Run([one]))
    column = next(c for c in made.columns if c.key == "accuracy_delta_points")
    assert column.show(made.rows[0]) == MISSING


@pytest.mark.parametrize(
    "records", [[], [record("minilm", "speed", "nf4", accuracy=None)], [record("minilm", "lora", "fp32")]]
)
def test_few_records_are_enough(records: list[dict[str, Any]], tmp_path: Path) -> None:
    assert write(tmp_path, records, plots=False)[-1] == tmp_path / "README.md"
    Console(width=80, file=io.StringIO()).print(terminal_table(records, 80))


def test_every_cell_that_did_not_finish_is_listed_with_its_reason(run: Run) -> None:
    (made,) = TABLES["failures"](run)
    assert made.frame[["method", "status"]].to_numpy().tolist() == [["global-90", "oom"]]
    assert "needed 31.2 GB" in made.markdown_page()


def test_a_finished_record_outlives_a_later_interruption() -> None:
    done = record("minilm", "beneath", "nf4")
    assert [r["status"] for r in Run([done, done | {"status": "interrupted"}]).records] == ["ok"]
    assert [r["status"] for r in Run([done | {"status": "oom"}, done]).records] == ["ok"]
    assert [r["key"] for r in Run([done, done | {"key": "again"}]).records] == ["again"]


def test_quick_runs_say_so_in_the_file_name_and_the_caption(tmp_path: Path) -> None:
    for path in write(tmp_path, sample(quick=True), plots=False)[:-1]:
        assert path.stem.endswith("-quick")
        if path.suffix in (".md", ".tex"):
            assert "QUICK" in path.read_text(encoding="utf-8")
    assert "QUICK" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 100, 140, 300])
def test_the_terminal_table_fits_and_names_what_it_drops(run: Run, width: int) -> None:
    out = io.StringIO()
    Console(width=width, file=out).print(terminal_table(run.records, width))
    assert max(map(len, out.getvalue().splitlines())) <= width
    assert "uniform-int4-float-zero-g64" in out.getvalue()
    (made,) = TABLES["methods-encoder"](run)
    shown, dropped = fit(made, width)
    assert {c.key for c in (*shown, *dropped)} == {c.key for c in made.used()}
    assert all(c.keep < 9 for c in dropped)
    if dropped:
        assert max(c.keep for c in dropped) <= min(9, *(c.keep for c in shown))


def test_memory_parts_sum_to_the_total(run: Run) -> None:
    (made,) = TABLES["memory"](run)
    for row in made.rows:
        parts = [row[f"{p}_bytes"] for p in ("codes", "scales", "zeros", "levels", "second_level", "mask")]
        assert (
            sum(parts) + row["constants_bytes"] + row["unquantized_bytes"] + row["adapter_bytes"] == row["model_bytes"]
        )
