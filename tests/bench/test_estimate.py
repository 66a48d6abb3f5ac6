"""How long cells will take: what the estimate rests on, and that it says so."""

import pytest

from bench.__main__ import main
from bench.estimate import Estimate
from bench.records import FILE
from bench.schema import Cell
from tests.bench.test_cli import save
from tests.bench.test_progress import done, job
from tests.bench.test_records import record


@pytest.mark.parametrize(("workers", "expected"), [(1, 20 + 3), (2, 10 + 3), (8, 4 + 3)])
def test_judged_cells_are_shared_and_speed_cells_are_not(workers, expected):
    speed = Cell("m", "t", "speed", "x")
    estimate = Estimate([done(job("x").cell), done(speed, 3.0)])
    assert estimate.run_s([*(job(str(i)).cell for i in range(5)), speed], workers) == expected


def test_the_newest_record_of_the_same_cell_tells_whatever_its_key():
    one, other, like = (Cell("m", "t", "beneath", name) for name in ("one", "other", "like"))
    old = done(one, 9.0) | {"started_utc": "2026-01-01T00:00:00+00:00", "key": "a"}
    new = done(one, 2.0) | {"started_utc": "2026-02-01T00:00:00+00:00", "key": "b"}
    failed = done(one, 70.0, "failed") | {"started_utc": "2026-03-01T00:00:00+00:00"}
    for records in ([old, new, failed], [failed, new, old]):
        estimate = Estimate([*records, done(other, 6.0)])
        assert [estimate.cell_s(cell) for cell in (one, other, like)] == [2.0, 6.0, 4.0]
    cells = [one, other, like, Cell("tiny-m", "t", "speed", "x"), Cell("tiny-m", "t", "lora", "x")]
    assert estimate.said(cells, 2) == (
        "about 7.0 s with 2 workers (an estimate: 2 by the newest record of the same cell, "
        "1 without one by others of the same model, task and order, 2 without any by a rough guess)"
    )
    assert estimate.said([one], 1) == "about 2.0 s with 1 worker (an estimate: 1 by the newest record of the same cell)"


def test_a_rough_guess_knows_the_models():
    seconds = {
        (m, o): Estimate([]).cell_s(Cell(m, "t", o, "x")) for m in ("smollm2", "minilm") for o in ("beneath", "qlora")
    }
    assert seconds == {
        ("smollm2", "beneath"): 9,
        ("smollm2", "qlora"): 50,
        ("minilm", "beneath"): 5,
        ("minilm", "qlora"): 28,
    }
    assert Estimate([]).cell_s(Cell("tiny-causal", "alice", "lora", "fp32")) == 0.4
    assert Estimate([]).cell_s(Cell("tiny-causal", "alice", "speed", "bf16")) == 0.8


def test_a_dry_run_knows_the_records_of_every_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def put(folder, cell, wall_s, **more):
        names = dict(zip(("model", "task", "order", "method"), cell.split("/"), strict=True))
        save(tmp_path / folder, record(wall_s=wall_s, **more) | {"cell": {**names, "seed": 0}})

    put("results/published", "tiny-encoder/alice-labels/lora/fp32", 7.0, key="made elsewhere")
    put("results/local/mine", "tiny-encoder/alice-labels/beneath/nf4-g64", 5.0)
    put("out", "tiny-encoder/alice-labels/beneath/nf4-g128", 3.0)
    (tmp_path / "results" / "newer").mkdir()
    (tmp_path / "results" / "newer" / FILE).write_text('{"schema": 99}\n')
    words = ["run", "quick", "--dry-run", "--methods", "nf4-g*", "--orders", "lora,beneath", "--models", "tiny-enc*"]
    assert main([*words, "--out", "out"]) == 0
    *cells, last = capsys.readouterr().out.splitlines()
    seconds = {line.split("/")[3]: line.split("  ")[1] for line in cells}
    assert (seconds["fp32"], seconds["nf4-g64"], seconds["nf4-g128"]) == ("7.0 s", "5.0 s", "3.0 s")
    assert f"(an estimate: 3 by the newest record of the same cell, {len(cells) - 3} without one by others of" in last


def test_a_dry_run_divides_the_judged_cells_by_the_workers(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.schedule.WORKER_BYTES", 1)
    words = ["run", "quick", "--dry-run", "--methods", "nf4-g64", "--orders", "lora,beneath,speed"]
    said = []
    for threads in ("1", "2"):
        assert main([*words, "--threads", threads]) == 0
        said.append(capsys.readouterr().out.splitlines()[-1])
    # two loras and two beneath of 0.4 s, one speed cell of 0.8 s
    assert said[0].startswith("5 cells, about 2.4 s with 1 worker (")
    assert said[1].startswith("5 cells, about 1.6 s with 2 workers (")
