"""The static gate: rules, verdicts against a baseline, planted regressions, exit codes, predictions."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

import kernels
from bench.static.__main__ import main
from bench.static.cases import cases
from bench.static.compare import baseline_file, compare, load, merged, save
from bench.static.devices import DEVICES
from bench.static.figures import Figures, figures, selected
from bench.static.model import predict
from bench.static.predict import page
from bench.static.rules import PROMISES, broken
from kernels.aot import VERSION, compile_launch
from kernels.op import operations
from kernels.tuning import Launch, recorded

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
    "widths": {"load codes_ptr": 128, "store out_ptr": 64},
    "inexact_divisions": 0,
    "fused": 0,
    "loops_known": True,
}
CASE, TARGET = "some_matmul/_kernel/m16-bf16/w4,s3", "sm_90"


def changed(**new: Any) -> dict[str, Figures]:
    return {TARGET: {**PLAIN, **new}}


@pytest.mark.parametrize(
    ("operation", "new", "said"),
    [
        ("some_matmul", {"spills": 2}, "2 spills"),
        ("some_matmul", {"shared": 227 * 1024 + 1}, "shared memory 232449 exceeds 232448"),
        ("some_quantize", {"inexact_divisions": 1}, "inexact division"),
        ("some_quantize", {"fused": 3}, "3 fused multiply-adds"),
    ],
)
def test_a_rule_holds_without_a_baseline(operation: str, new: Mapping[str, Any], said: str) -> None:
    case = f"{operation}/_kernel/m16-bf16/w4"
    assert list(broken(case, TARGET, PLAIN)) == []
    (sentence,) = broken(case, TARGET, {**PLAIN, **new})
    assert said in sentence
    (row,) = compare({case: changed(**new)}, None, [TARGET])
    assert row.red


def test_only_quantizers_must_not_contract() -> None:
    loose = {**PLAIN, "fused": 3, "inexact_divisions": 1}
    assert list(broken("some_dequantize/_kernel/-/w4", TARGET, loose)) == []
    assert list(broken("dequantize_then_quantize/_kernel/-/w4", TARGET, loose)) != []


def test_the_shared_memory_of_each_chip_is_its_own() -> None:
    middle = {**PLAIN, "shared": 128 * 1024}
    assert [t for t in ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942") if list(broken(CASE, t, middle))] == [
        "sm_120",
        "gfx942",
    ]


def test_every_promise_is_made_by_a_kernel_and_can_be_broken() -> None:
    names = {f"{op.name}/{case.kernel}" for op in operations().values() for case in cases(op)}
    for promise in PROMISES:
        name = promise.pattern.replace("*", "some")
        assert any(re.fullmatch(promise.pattern.replace("*", ".*"), each) for each in names), promise
        kept = {**PLAIN, "widths": {**PLAIN["widths"], **promise.widths}}
        assert list(broken(f"{name}/m16-bf16/w4", TARGET, kept)) == []
        assert list(broken(f"{name}/m16-bf16/w4", TARGET, {**PLAIN, "matrix": 0, "widths": {}})) != []


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
        ({"matrix": 0}, "WORSE"),
        ({"widths": {"load codes_ptr": 64, "store out_ptr": 64}}, "WORSE"),
        ({"widths": {"load codes_ptr": 128, "store out_ptr": 128}}, "BETTER"),
        ({"spills": 1}, "BROKEN"),
    ],
)
def test_the_verdict_follows_the_margins(new: Mapping[str, Any], verdict: str) -> None:
    (row,) = compare({CASE: changed(**new)}, {CASE: changed()}, [TARGET])
    assert row.verdict == verdict
    assert row.red == (verdict in ("WORSE", "BROKEN"))
    assert bool(row.changes) == (verdict != "OK")


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


def verdict(before: Launch, after: Launch, config: triton.Config | None = None, target: str = "sm_90") -> Any:
    old, new = (figures(compile_launch(one, target, c), 512 * 4096) for one, c in ((before, None), (after, config)))
    (row,) = compare({CASE: {target: new}}, {CASE: {target: old}}, [target])
    return row


@pytest.mark.parametrize("lost", ["row_bytes", "k"])
def test_a_lost_divisibility_hint_turns_the_gate_red(lost: str) -> None:
    whole = launch()
    odd = dataclasses.replace(whole, arguments={**whole.arguments, lost: whole.arguments[lost] + 1})
    row = verdict(whole, odd)
    assert row.verdict == "WORSE"
    assert any(("codes_ptr" if lost == "row_bytes" else "out_ptr") in change for change in row.changes)


def test_an_oversized_tile_turns_the_gate_red() -> None:
    whole = launch("affine_matmul")
    large = triton.Config({"BLOCK_M": 128, "BLOCK_N": 64}, num_warps=8, num_stages=12)
    row = verdict(whole, whole, large, "sm_80")
    assert row.verdict == "BROKEN"
    assert any("shared memory" in change for change in row.changes)


def test_a_tile_that_spills_turns_the_gate_red() -> None:
    whole = launch("affine_matmul", torch.float32)
    large = triton.Config({"BLOCK_M": 64, "BLOCK_N": 128}, num_warps=4, num_stages=3)
    row = verdict(whole, whole, large, "sm_80")
    assert row.verdict == "BROKEN"
    assert any("spills" in change for change in row.changes)


def test_a_comment_changes_nothing(tmp_path: Path) -> None:
    source = (Path(kernels.__path__[0]) / "affine.py").read_text()
    body = "across = (k + BLOCK_K - 1) // BLOCK_K\n"
    assert body in source
    file = tmp_path / "affine_with_a_comment.py"
    file.write_text(source.replace(body, f"# how many blocks a row has\n\n    {body}"))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    op = next(op for op in module.OPERATIONS if op.name == "affine_dequantize")
    commented = recorded(op.triton, op.sized(16, 512, 4096, torch.bfloat16, "cpu").arguments)[1][0]
    assert commented.kernel.fn is not launch().kernel.fn
    row = verdict(launch(), commented)
    assert (row.verdict, row.changes) == ("OK", ())


def run(folder: Path, *more: str) -> int:
    only = ["--only", "affine_dequantize", "--target", "sm_90", "--workers", "0"]
    return main([*only, "--folder", str(folder), *more])


def test_the_command_ends_with_one_when_a_kernel_became_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", triton.knobs.cache.dir)
    assert run(tmp_path) == 0
    assert f"No baseline for triton {VERSION}" in capsys.readouterr().out
    assert run(tmp_path, "--update", "the first") == 0
    assert run(tmp_path) == 0
    out = capsys.readouterr().out
    assert re.search(r"(\d+) compiled kernels: \1 OK", out)
    file = baseline_file(tmp_path, VERSION)
    good = file.read_text()
    file.write_text(re.sub(r'"per_value": [\d.]+', '"per_value": 1.0', good))
    assert run(tmp_path) == 1
    assert re.search(r"WORSE .*per_value 1\.0 ->", capsys.readouterr().out)
    assert run(tmp_path, "--update", "slower, and right") == 0
    assert file.read_text() == good.replace("the first", "slower, and right")
    assert run(tmp_path, "--target", "sm_30") == 2
    assert main(["--only", "nothing", "--workers", "0", "--folder", str(tmp_path)]) == 2


def test_a_prediction_is_the_largest_of_three_bounds() -> None:
    one = launch("affine_matmul")
    built = compile_launch(one, "sm_80")
    device = DEVICES[0]
    p = predict(one, built, device)
    assert p.seconds == max(p.bytes, p.issue, p.matrix) > 0
    rates = {"clock": 2 * device.clock, "bandwidth": 4 * device.bandwidth, "tensor": 8 * device.tensor}
    q = predict(one, built, dataclasses.replace(device, **rates))
    assert (p.issue / q.issue, p.bytes / q.bytes, p.matrix / q.matrix) == pytest.approx((2, 4, 8))
    twice = dataclasses.replace(built, programs=built.programs + device.units)
    assert predict(one, twice, device).issue > p.issue
    assert predict(one, dataclasses.replace(built, programs=1), device).issue <= p.issue


def test_the_page_says_that_it_predicts() -> None:
    text = page([])
    assert "predictions of a model, not measurements" in text
    for device in DEVICES:
        assert f"## {device.name}: predictions" in text
