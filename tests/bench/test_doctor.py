"""The doctor: version ranges, how each line is worded, and a verdict that follows from the lines."""

import json
from pathlib import Path

import pytest

from bench import doctor
from bench.__main__ import main
from bench.compiler import REMEDY, compiler_problem
from bench.doctor import RANGES, Check, examine, in_range, shown, verdict

GOOD = [Check(name, "OK", "1") for name in ("python", "torch", "transformers", "peft", "cuda", "results")]


@pytest.mark.parametrize(
    ("version", "right"),
    [("2.13.0+cpu", True), ("2.11", True), ("2.10.9", False), ("2.14.0", False), ("2.14.0rc1", True), ("odd", False)],
)
def test_version_ranges(version, right):
    assert in_range(version, "2.11", "2.14") is right


def test_the_ranges_are_those_of_the_package():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for name in ("torch", "triton"):
        low, high = RANGES[name]
        assert f"{name}>={low},<{high}" in text


def test_the_verdict_follows_from_the_lines():
    assert verdict(GOOD).startswith("You can run: bench run quick (tiny models, about a minute), bench run default")
    assert verdict(GOOD).endswith("On the GPU too: --device cuda.")
    lacking = [*GOOD, Check("model minilm", "missing", "no package", "run `make setup`")]
    assert "The others need minilm." in verdict(lacking)
    assert "default" not in verdict(lacking)
    assert verdict([*GOOD[1:], Check("python", "missing", "3.9")]).startswith("You can run: nothing yet")


def test_on_a_gpu_a_c_compiler_is_needed(monkeypatch):
    monkeypatch.setattr(doctor, "_cuda", lambda: Check("cuda", "OK", "a gpu"))
    monkeypatch.setenv("CC", "/no/such/compiler")
    (found,) = (check for check in examine(Path("results")) if check.name == "compiler")
    assert (found.state, found.fix) == ("missing", REMEDY)
    assert "CC is /no/such/compiler, which cannot be run" in found.found
    assert verdict([*GOOD, found]).endswith("On the GPU nothing before there is a C compiler.")
    monkeypatch.setattr(doctor, "_cuda", lambda: Check("cuda", "limited", "no CUDA device"))
    (found,) = (check for check in examine(Path("results")) if check.name == "compiler")
    assert (found.state, found.fix) == ("limited", "needed on a GPU only")


def test_a_compiler_is_looked_for_where_triton_looks(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler_problem() == ("", "no C compiler: CC is not set, and neither gcc nor clang is on the path")
    for name, code in (("clang", 0), ("gcc", 1)):
        (tmp_path / name).write_text(
            f"#!/bin/sh\n/bin/cat >/dev/null; echo 'x.c:1: error: no header' >&2; exit {code}\n"
        )
        (tmp_path / name).chmod(0o755)
        found, problem = compiler_problem()
        assert Path(found).name == name
        assert bool(problem) == bool(code)
    assert "Python.h" in problem
    monkeypatch.setenv("CC", str(tmp_path / "clang"))
    assert compiler_problem() == (str(tmp_path / "clang"), "")


def test_a_line_says_how_to_mend_it():
    text = shown([Check("torch", "limited", "2.9, tested with 2.11", "install torch")], as_json=False)
    assert text.splitlines()[0] == "limited  torch  2.9, tested with 2.11  -> install torch"


def test_a_results_folder_below_a_file_is_missing(tmp_path):
    (tmp_path / "file").write_text("")
    states = {check.name: check for check in examine(tmp_path / "file" / "results")}
    assert states["results"].state == "missing"
    assert "--out" in states["results"].fix


def test_the_command_prints_json(capsys):
    assert main(["doctor", "--json"]) in (0, 4)
    report = json.loads(capsys.readouterr().out)
    assert {"python", "torch", "cpu", "memory", "disk", "cuda", "compiler"} <= {
        check["name"] for check in report["checks"]
    }
    assert report["verdict"].startswith("You can run: ")
