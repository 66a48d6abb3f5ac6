"""The static gate: rules, verdicts against a baseline, planted regressions, exit codes."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import pkgutil
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

import kernels
from bench.static import rules
from bench.static.__main__ import FOLDER, main
from bench.static.cases import Case
from bench.static.compare import baseline_file, compare, load, merged, save
from bench.static.figures import Figures, figures, measure, selected, source_key
from bench.static.rules import EXEMPTIONS, MATRIX, QUANTIZERS, Exemption, broken, broken_rules
from kernels.aot import TARGETS, VERSION, compile_launch
from kernels.op import operations
from kernels.tuning import Kernel, Launch, recorded

pytestmark = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1: interpreted kernels cannot be compiled"
)
PLAIN: Figures = {
    "registers": 100,
    "spills": 0,
    "shared": 16384,
    "size": 400,
    "per_value": 10.0,
    "matrix": 4,
    "widths": {"load codes_ptr": 128, "load scale_ptr": 16, "store out_ptr": 64},
    "large": ["codes_ptr"],
    "inexact_divisions": 0,
    "fused": 0,
    "loops_known": True,
    "settings": "w4 s3",
}
CASE, TARGET = "some_matmul/_small/m16-bf16/c0", "sm_90"


def changed(**new: Any) -> dict[str, Figures]:
    return {TARGET: {**PLAIN, **new}}


@pytest.mark.parametrize(
    ("operation", "new", "said"),
    [
        ("some_matmul", {"spills": 2}, "2 spills"),
        ("some_matmul", {"shared": 227 * 1024 + 1}, "shared memory 232449 exceeds 232448"),
        ("some_matmul", {"matrix": 0}, "no matrix instructions"),
        ("some_matmul", {"widths": {"load codes_ptr": 64}}, "load codes_ptr of 8 bytes a lane instead of 16"),
        ("some_dequantize", {"large": ["out_ptr"]}, "store out_ptr of 8 bytes"),
        ("some_quantize", {"inexact_divisions": 1}, "inexact division"),
        ("some_quantize", {"fused": 3}, "3 fused multiply-adds"),
    ],
)
def test_a_rule_holds_without_a_baseline(operation: str, new: Mapping[str, Any], said: str) -> None:
    case = f"{operation}/_small/m16-bf16/c0"
    assert list(broken(case, TARGET, PLAIN)) == []
    (sentence,) = broken(case, TARGET, {**PLAIN, **new})
    assert said in sentence
    (row,) = compare({case: changed(**new)}, None, [TARGET])
    assert row.red


def test_float32_is_not_held_to_a_unit_that_would_round_it() -> None:
    assert list(broken("some_matmul/_small/m16-fp32/c0", "sm_90", {**PLAIN, "matrix": 0})) == []
    assert len(list(broken("some_matmul/_small/m16-fp32/c0", "gfx942", {**PLAIN, "matrix": 0}))) == 1


def test_only_quantizers_must_not_contract() -> None:
    loose = {**PLAIN, "fused": 3, "inexact_divisions": 1}
    assert list(broken("some_dequantize/_kernel/-/c0", TARGET, loose)) == []
    assert len(list(broken("some_quantize/_kernel/-/c0", TARGET, loose))) == 2
    (division,) = broken("w8a8_matmul/_round/-/c0", TARGET, loose)
    assert "division" in division


def test_the_shared_memory_of_each_chip_is_its_own() -> None:
    middle = {**PLAIN, "shared": 128 * 1024}
    assert [t for t in ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942") if list(broken(CASE, t, middle))] == [
        "sm_120",
        "gfx942",
    ]


def test_an_exemption_excuses_one_rule_of_its_cases_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = {**PLAIN, "widths": {"load codes_ptr": 64}, "spills": 1}
    monkeypatch.setattr(rules, "EXEMPTIONS", (Exemption("wide load codes_ptr", "some_*", "because"),))
    assert [rule for rule, _ in broken_rules(CASE, TARGET, narrow)] == ["spills", "wide load codes_ptr"]
    (left,) = broken(CASE, TARGET, narrow)
    assert "spills" in left
    assert len(list(broken(CASE.replace("some", "other"), TARGET, narrow))) == 2


BASELINES = sorted(FOLDER.glob("triton-*.json"))


def committed() -> Iterator[tuple[str, str, Figures]]:
    """Case, target and figures of all committed baselines."""
    tables = (load(file) or {} for file in BASELINES)
    return ((case, target, f) for table in tables for case, each in table.items() for target, f in each.items())


def test_every_exemption_and_promise_is_of_a_kernel_that_exists() -> None:
    breaks = {(case, rule) for case, target, f in committed() for rule, _ in broken_rules(case, target, f)}
    for e in EXEMPTIONS:
        assert len(e.reason.split()) > 3, e
        assert any(rule == e.rule and fnmatch(case, e.pattern) for case, rule in breaks), f"no longer needed: {e}"
    names = {case for case, _, _ in committed()}
    for pattern in (*MATRIX, *QUANTIZERS):
        assert any(fnmatch(case, pattern) for case in names), pattern


def test_committed_baselines_break_no_rule() -> None:
    assert [(case, target, said) for case, target, f in committed() for said in broken(case, target, f)] == []


@pytest.mark.parametrize("file", BASELINES, ids=lambda file: file.stem)
def test_a_committed_baseline_has_every_kernel_on_every_target(file: Path) -> None:
    modules = [importlib.import_module(info.name) for info in pkgutil.iter_modules(kernels.__path__, "kernels.")]
    names = {value.fn.__name__ for module in modules for value in vars(module).values() if isinstance(value, Kernel)}
    assert len(names) > 5
    table = load(file) or {}
    for name in names:
        assert {t for case, each in table.items() if case.split("/")[1] == name for t in each} == set(TARGETS), name


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ({}, "OK"),
        ({"size": 4000}, "OK"),  # code that runs once is free; what runs for each value is counted
        ({"registers": 105}, "OK"),
        ({"registers": 106}, "WORSE"),
        ({"registers": 94}, "BETTER"),
        ({"per_value": 10.29}, "OK"),
        ({"per_value": 10.31}, "WORSE"),
        ({"per_value": 9.0}, "BETTER"),
        ({"per_value": 9.0, "registers": 106}, "WORSE"),
        ({"shared": 16385}, "WORSE"),
        ({"shared": 8192}, "BETTER"),
        ({"matrix": 2}, "OK"),
        ({"matrix": 0}, "BROKEN"),
        ({"widths": {**PLAIN["widths"], "store out_ptr": 32}}, "WORSE"),
        ({"widths": {**PLAIN["widths"], "store out_ptr": 128}}, "BETTER"),
        ({"settings": "w8 s3"}, "OK"),
        ({"settings": "w8 s3", "registers": 120}, "WORSE"),
        ({"spills": 1}, "BROKEN"),
    ],
)
def test_the_verdict_follows_the_margins(new: Mapping[str, Any], verdict: str) -> None:
    (row,) = compare({CASE: changed(**new)}, {CASE: changed()}, [TARGET])
    assert row.verdict == verdict
    assert row.red == (verdict in ("WORSE", "BROKEN"))
    assert bool(row.changes) == (verdict != "OK")
    assert ("w4 s3 -> w8 s3" in row.changes) == ("settings" in new and verdict == "WORSE")


def test_a_kernel_that_no_rule_holds_to_the_matrix_unit_may_not_leave_it() -> None:
    (row,) = compare({"some/_k/-/c0": changed(matrix=0)}, {"some/_k/-/c0": changed()}, [TARGET])
    assert (row.verdict, row.changes) == ("WORSE", ("matrix instructions 4 -> 0",))


def test_a_case_of_one_side_only_is_new_or_gone_and_not_red() -> None:
    rows = compare({"a/b/c/d": changed()}, {CASE: changed()}, [TARGET])
    assert [(row.case, row.verdict, row.red) for row in rows] == [("a/b/c/d", "NEW", False), (CASE, "GONE", False)]


def test_a_baseline_comes_back_from_its_file_and_a_part_replaces_its_part(tmp_path: Path) -> None:
    file = baseline_file(tmp_path, "3.9.0+git1")
    assert file.name == "triton-3.9.0.json"
    assert load(file) is None
    base = {"a/b/c/d": {"sm_80": PLAIN, "sm_90": PLAIN}, CASE: changed()}
    save(file, base, "because")
    assert load(file) == base
    assert json.loads(file.read_text())["reason"] == "because"
    now = {"a/b/c/e": changed(size=1)}
    assert merged(base, now, {"a/b/c/d": {}}, ["sm_90"]) == {"a/b/c/d": {"sm_80": PLAIN}, CASE: changed(), **now}
    assert selected(CASE, "some_*")
    assert not selected(CASE, "other")
    assert selected(CASE, "*/m16-*")
    assert not selected(CASE, "*/m1-*")


def launch(name: str = "affine_dequantize", dtype: torch.dtype = torch.bfloat16) -> Launch:
    op = operations()[name]
    return recorded(op.triton, op.sized(16, 512, 4096, dtype, "cpu").arguments)[1][0]


def configured(one: Launch, config: triton.Config) -> Launch:
    return dataclasses.replace(one, kernel=dataclasses.replace(one.kernel, configs=(config,)))


def verdict(operation: str, before: Launch, after: Launch, target: str = "sm_90") -> Any:
    """Of one launch after another, both in the first configuration."""
    pair = [Case(operation, one, "m16-bf16", 0, (target,), 512 * 4096) for one in (before, after)]
    old, new = (figures(case, compile_launch(case.launch, target, case.config)) for case in pair)
    (row,) = compare({pair[0].name: {target: new}}, {pair[0].name: {target: old}}, [target])
    return row


@pytest.mark.parametrize("lost", ["row_bytes", "k"])
def test_a_lost_divisibility_hint_turns_the_gate_red(lost: str) -> None:
    whole = launch()
    odd = dataclasses.replace(whole, arguments={**whole.arguments, lost: whole.arguments[lost] + 1})
    row = verdict("affine_dequantize", whole, odd)
    assert row.red
    assert any(("codes_ptr" if lost == "row_bytes" else "out_ptr") in change for change in row.changes)


def test_an_oversized_tile_turns_the_gate_red() -> None:
    whole = launch("affine_matmul")
    large = triton.Config({"BLOCK_N": 512}, num_warps=8, num_stages=12)
    row = verdict("affine_matmul", whole, configured(whole, large), "sm_80")
    assert row.verdict == "BROKEN"
    assert any("shared memory" in change for change in row.changes)


def test_a_tile_that_spills_turns_the_gate_red() -> None:
    whole = launch("affine_matmul", torch.float32)
    large = triton.Config({"BLOCK_N": 512}, num_warps=4, num_stages=3)
    row = verdict("affine_matmul", whole, configured(whole, large), "sm_80")
    assert row.verdict == "BROKEN"
    assert any("spills" in change for change in row.changes)


def test_a_comment_changes_nothing(tmp_path: Path) -> None:
    source = (Path(kernels.__path__[0]) / "dequantize.py").read_text()
    (function,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == "_dequantize")
    lines = source.splitlines()
    lines.insert(function.body[0].lineno - 1, "    # which tile this is\n")
    file = tmp_path / "dequantize_with_a_comment.py"
    file.write_text("\n".join(lines))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    commented = dataclasses.replace(launch(), kernel=module.DEQUANTIZE)
    assert commented.kernel.fn is not launch().kernel.fn
    row = verdict("affine_dequantize", launch(), commented)
    assert (row.verdict, row.changes) == ("OK", ())


def run(folder: Path, *more: str) -> int:
    only = ["--only", "affine_dequantize", "--target", "sm_90", "--workers", "0"]
    return main([*only, "--folder", str(folder), *more])


def test_figures_are_kept_until_a_source_or_a_version_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    first = measure("codebook_matmul/_add_up/m16-bf16/*", ["sm_80"], 0)
    assert list(first) == ["codebook_matmul/_add_up/m16-bf16/c0"]
    monkeypatch.setattr("bench.static.figures.compile_launches", None)
    assert measure("codebook_matmul/_add_up/m16-bf16/*", ["sm_80"], 0) == first
    with pytest.raises(TypeError):
        measure("codebook_matmul/_add_up/m16-bf16/*", ["sm_90"], 0)
    source = tmp_path / "kernel.py"
    source.write_text("a = 1")
    before = source_key([tmp_path], "3.9.0")
    assert source_key([tmp_path], "3.8.0") != before
    source.write_text("a = 2")
    assert source_key([tmp_path], "3.9.0") != before


def test_the_command_ends_with_one_when_a_kernel_became_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", triton.knobs.cache.dir)
    assert run(tmp_path) == 0
    out = capsys.readouterr().out
    assert f"No baseline for triton {VERSION}" in out
    assert "bench.static --write" in out
    assert run(tmp_path, "--write", "the first") == 0
    assert run(tmp_path) == 0
    out = capsys.readouterr().out
    assert re.search(r"(\d+) compiled kernels: \1 OK", out)
    file = baseline_file(tmp_path, VERSION)
    good = file.read_text()
    file.write_text(re.sub(r'"per_value": [\d.]+', '"per_value": 1.0', good))
    assert run(tmp_path) == 1
    assert re.search(r"WORSE .*per_value 1\.0 ->", capsys.readouterr().out)
    assert run(tmp_path, "--write", "slower, and right") == 0
    assert file.read_text() == good.replace("the first", "slower, and right")
    assert run(tmp_path, "--target", "sm_30") == 2
    assert main(["--only", "nothing", "--workers", "0", "--folder", str(tmp_path)]) == 2
