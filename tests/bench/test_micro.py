"""Laws of the kernel benchmark under pytest-benchmark: it shows the samples of the records, and tells what it lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu.store import KERNELS, read_lines
from bench.micro import __main__ as micro
from bench.micro import test_cpu_linear
from bench.micro.test_linear import SampleClock
from kernels.op import operations

ROOT = Path(__file__).resolve().parents[2]


def test_a_clock_that_samples_move_shows_them_in_their_order() -> None:
    clock = SampleClock()
    play = clock.player([0.5, 0.25])
    seen = []
    for _ in range(2):
        before = clock()
        play()
        seen.append(clock() - before)
    assert seen == [0.5, 0.25]
    with pytest.raises(StopIteration):
        play()


def test_without_cuda_the_cpu_paths_are_timed_and_the_rest_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(micro, "timed", lambda given, rest, cuda: 0)
    monkeypatch.setattr(test_cpu_linear, "main", lambda: print("| table of the CPU paths |"))
    assert micro.main([]) == 0
    told = capsys.readouterr().out
    assert told.index("the figures are those of the CPU paths") < told.index("| table of the CPU paths |")
    left_out = told[told.index("Not timed here") :]
    for name in (*operations(), "dense-bf16", "bitsandbytes-nf4-dq", "torchao-int4-g64", "gemlite-int4-g64"):
        assert name in left_out
    assert "rows 1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096" in left_out


def test_a_failed_benchmark_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(micro, "timed", lambda given, rest, cuda: 3)
    monkeypatch.setattr(test_cpu_linear, "main", lambda: None)
    assert micro.main([]) == 3


def test_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert micro.main([]) == 2
    assert "unset it" in capsys.readouterr().err


def test_the_table_is_that_of_the_records(tmp_path: Path) -> None:
    """Blocks of tiny size on the CPU: what pytest-benchmark prints are the samples of each record."""
    shown = tmp_path / "shown.json"
    command = [sys.executable, "-m", "pytest", "bench/micro/test_linear.py", "--benchmark-enable", "--tiny", "-q"]
    command += ["-k", "64x128", "--records", str(tmp_path / "records"), f"--benchmark-json={shown}"]
    # beside other workers pytest-benchmark is off
    alone = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    kernels = [r for r in read_lines(tmp_path / "records" / KERNELS)[0] if r["kind"] == "kernel"]
    records = {(r["key"].split(" / ")[1], r["subject"]): r for r in kernels}
    benchmarks = json.loads(shown.read_text())["benchmarks"]
    assert {(b["group"], b["params"]["name"]) for b in benchmarks} == set(records)
    for made in benchmarks:
        record = records[made["group"], made["params"]["name"]]
        assert made["stats"]["median"] == pytest.approx(record["eager_s"]["value"], rel=1e-6)
        assert made["stats"]["rounds"] == record["rounds"]
        assert made["extra_info"]["device"] == "cpu"
        assert made["extra_info"]["speedup"] == record["speedup"]["value"]
