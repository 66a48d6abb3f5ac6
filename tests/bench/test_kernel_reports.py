"""Laws of the report of a GPU's records: targets, tables, plots, the page, what is said of what is missing."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UsageError
from bench.gpu.shapes import ROWS
from bench.gpu.store import KERNELS, STAGES
from bench.reports.__main__ import main
from bench.reports.kernel_frames import cells_of, mark_of
from bench.reports.kernel_targets import TARGETS, targets_of
from bench.reports.kernels import write
from bench.reports.plots.kernels import crossover, roofline, speedups
from bench.reports.tables.kernels import kernel_tables
from tests.bench.gpu_records import BANDWIDTH, BITS, PRODUCT, SHAPES, everything, kernel, stat


def target(rows: list[dict[str, Any]], **place: Any) -> dict[str, Any]:
    """The only row that agrees with `place`."""
    (found,) = [r for r in rows if all(r[name] == value for name, value in place.items())]
    return found


def write_records(folder: Path, records: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        name = KERNELS if record["kind"] in ("kernel", "skipped", "run") else STAGES
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    return folder


def test_a_target_is_reached_by_its_whole_interval_only() -> None:
    place = {"n": 8192, "k": 8192, "m": 16, "what": "speed-up over cuBLAS bf16"}
    for value, spread, verdict in (
        (2.5, 0.02, "reached"),
        (2.2, 0.0, "reached"),
        (2.21, 0.02, "not reached: the interval contains the target"),
        (2.19, 0.02, "not reached: the interval contains the target"),
        (2.0, 0.02, "not reached"),
    ):
        cell = kernel("nf4-g64-dq", 16, (8192, 8192), value) | {"speedup": stat(value, spread)}
        assert target(targets_of([cell]), **place)["verdict"] == verdict, value


def test_every_target_of_a_whole_run_is_judged() -> None:
    rows = targets_of(everything())
    assert len(rows) >= len(TARGETS) + 3
    assert target(rows, m=1, n=8192, what="speed-up over cuBLAS bf16")["verdict"] == "reached"
    assert target(rows, m=4096, n=8192, what="speed-up over cuBLAS bf16")["verdict"] == "reached"
    share = target(rows, m=1, n=8192, what="share of the measured copy bandwidth")
    assert share["got"] == pytest.approx(speed_share := 4.13 / 16 * 3.2 * 0.99, rel=1e-3)
    assert share["got_low"] == pytest.approx(speed_share / 1.02, rel=1e-3)
    assert target(rows, operation="dequantize", subject="codebook_dequantize")["verdict"] == "reached"
    assert target(rows, operation="quantize", subject="affine_quantize")["verdict"] == "not reached"
    assert target(rows, what="seconds of the first call with a table, at most")["verdict"] == "reached"


def test_beside_another_library_the_worst_number_of_rows_counts() -> None:
    records = everything()
    what = "time of bitsandbytes-nf4-dq over this one's, at the worst number of rows"
    rows = [r for r in targets_of(records) if r["what"] == what]
    assert [r["verdict"] for r in rows] == ["reached"] * len(SHAPES)
    slow = next(r for r in records if r["subject"] == "nf4-g64-dq" and r["n"] == 4096 and r["m"] == 64)
    slow["speedup"] = stat(1.0)
    worst = target(targets_of(records), what=what, n=4096)
    assert (worst["m"], worst["verdict"], worst["reason"]) == (64, "not reached", f"of {len(ROWS)} numbers of rows")


def test_what_was_not_measured_says_why() -> None:
    bare = [r for r in everything() if "bitsandbytes" not in str(r.get("subject"))]
    gone = {**bare[0], "kind": "skipped", "status": "skipped", "subject": "bitsandbytes-nf4-dq"}
    gone["reason"] = "bitsandbytes is not installed"
    row = target(targets_of([*bare, gone]), subject="nf4-g64-dq", least=1.0, m=None, n=8192)
    assert (row["verdict"], row["reason"]) == ("not measured", "bitsandbytes is not installed")
    wrong = kernel("nf4-g64-dq", 1, (8192, 8192), 3.0) | {"status": "wrong", "reason": "relative error 0.3"}
    rows = [r for r in targets_of([wrong]) if r["m"] == 1 and r["n"] == 8192 and r["operation"] == "matmul"]
    assert {(r["verdict"], r["reason"]) for r in rows} == {("not measured", "relative error 0.3")}


def test_targets_hold_for_the_devices_they_name() -> None:
    rows = targets_of(everything("NVIDIA GeForce RTX 4090"))
    assert {r["verdict"] for r in rows} == {"not measured"}
    assert {r["reason"] for r in rows} == {"no record of an H100 or H200"}
    assert {r["verdict"] for r in targets_of([])} == {"not measured"}


def test_every_cell_is_a_row_with_its_rates() -> None:
    made = {t.name: t for t in kernel_tables(everything())}
    rows = list(csv.DictReader(io.StringIO(made["kernels"].csv())))
    assert len(rows) == len(cells_of(everything())) == len(SHAPES) * len(BITS) * len(ROWS) + 4
    row = next(r for r in rows if r["subject"] == "nf4-g64-dq" and (r["n"], float(r["m"] or 0)) == ("28672", 1))
    assert float(row["bandwidth_share"]) == pytest.approx(float(row["bandwidth_bytes_per_s"]) / BANDWIDTH)
    assert float(row["flop_share"]) == pytest.approx(float(row["flop_per_s"]) / PRODUCT)
    shown = made["kernels"].markdown()
    for heading in ("time (µs)", "eager (µs)", "dispatch (µs)", "GB/s", "of copy (%)", "TFLOP/s"):
        assert heading in shown


def test_each_table_says_what_it_is_of() -> None:
    made = {t.name: t for t in kernel_tables(everything())}
    assert "10 passed, 0 failed, 1 skipped, 0 unreached" in made["gpu-stages"].markdown()
    assert "gemlite is not installed" in made["kernels-left-out"].markdown()
    assert "0.7" in made["kernel-routes"].markdown()
    for table in made.values():
        if table.name != "gpu-stages":
            assert "NVIDIA H200" in table.caption
    assert "copy 4000 GB/s and product 800 TFLOP/s measured in the same run" in made["kernels"].caption


def test_the_crossover_is_where_the_line_passes_one() -> None:
    assert crossover([(1, 4.0), (16, 2.0), (64, 0.5)]) == pytest.approx(32.0)
    assert crossover([(64, 0.5), (16, 2.0), (1, 4.0)]) == pytest.approx(32.0)  # in any order
    assert crossover([(1, 4.0), (64, 2.0)]) is None
    assert crossover([(1, 0.5), (64, 2.0), (256, 1.0)]) == pytest.approx(256.0)


def test_the_plots_show_every_figure_of_their_data() -> None:
    drawn = speedups(everything())
    assert drawn is not None
    assert len(drawn.data) == len(SHAPES) * (len(BITS) - 1) * len(ROWS)
    assert set(drawn.data["subject"]) == set(BITS) - {"dense-bf16"}
    roof = roofline(everything())
    assert roof is not None
    assert set(roof.data["n"]) == {8192}
    assert max(roof.data["flop_per_s"]) <= PRODUCT * 4
    axes = roof.figure.axes[0]
    ceiling = next(line for line in axes.lines if line.get_linewidth() == 1.6)
    assert max(ceiling.get_ydata()) == pytest.approx(PRODUCT / 1e12, rel=0.05)


def test_the_report_is_written_whole_and_twice_the_same(tmp_path: Path) -> None:
    folder = write_records(tmp_path / "run", everything())
    paths = write(folder)
    names = {str(p.relative_to(folder)) for p in paths}
    assert {"REPORT.md", "tables/kernel-targets.md", "plots/kernel-speedups.png", "plots/kernel-roofline.svg"} <= names
    page = (folder / "REPORT.md").read_text()
    assert "CPU" not in page.split("##")[0]
    before = {p: p.read_bytes() for p in paths}
    assert main(["kernels", str(folder)]) == 0
    assert {p: p.read_bytes() for p in paths} == before


def test_of_several_records_of_a_cell_the_last_good_one_counts(tmp_path: Path) -> None:
    first, last = (kernel("nf4-g64-dq", 1, (8192, 8192), s) for s in (2.0, 3.0))
    late = last | {"status": "failed", "reason": "no"}
    folder = write_records(tmp_path, [first, last, late])
    write(folder)
    assert "3.00 ± 0.06" in (folder / "tables" / "kernel-speedups.md").read_text()


def test_a_folder_without_records_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", str(tmp_path)]) == 2
    assert "run `make gpu` or `make bench-kernels`" in capsys.readouterr().err
    (tmp_path / KERNELS).write_text("{broken\n")
    with pytest.raises(UsageError, match=r"kernels\.jsonl:1"):
        write(tmp_path)


def test_figures_of_a_cpu_are_marked() -> None:
    cpu = [kernel("nf4-g64-dq", 1, (128, 256), 1.0) | {"device": "cpu"}]
    assert mark_of(cpu) == "CPU"
    assert "says nothing of the kernels" in kernel_tables(cpu)[1].caption
