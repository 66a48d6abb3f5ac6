"""The gate's cases for a GPU: which there are and what they check, on any machine; their seconds, on one with a GPU."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.gate import cuda_cases as module
from bench.gate.cases import Case, Missing, Ready
from bench.gate.clocks import HeldClock
from bench.gate.compare import compared
from bench.gate.load import loaded
from bench.gate.trees import working
from bench.gate.verdict import Rule
from tests.bench.gate_toys import write_tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def on_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two sides of the project whose kernels are their references, and cases of a small size on the CPU."""
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "SIZE", 128)
    with loaded([working(ROOT, tmp_path / str(i)) for i in range(2)]) as sides:
        for side in sides:
            found = side.module("kernels.op").operations()
            for name, op in found.items():
                found[name] = dataclasses.replace(op, triton=op.reference)
        yield sides


def test_every_operation_is_a_case_and_is_checked(on_cpu):
    cases = list(module.cuda_cases(*on_cpu))
    operations = on_cpu[1].module("kernels.op").operations()
    assert {case.name.split("/")[1] for case in cases} == set(operations)
    assert any(case.name == "kernel/codebook_matmul/bfloat16/64x128x128" for case in cases)
    assert sum("codebook_dequantize/" in case.name for case in cases) == 1
    for case in cases:
        ready = case.build(on_cpu[0])
        assert ready.wrong() is None, case.name
        ready.fresh(np.random.default_rng(0))()
    assert cases[0].build(on_cpu[1]).wrong() is None


def test_products_with_few_rows_come_first(on_cpu):
    names = [case.name for case in module.cuda_cases(*on_cpu)]
    assert len(names) == len(set(names))
    first = [name for name in names if name.endswith("/1x128x128") and "_matmul/" in name]
    assert names[: len(first)] == first
    assert len(first) >= 5
    assert all("_matmul/" not in name for name in names[4 * len(first) :])


def test_a_kernel_that_computes_something_else_is_wrong(on_cpu):
    operations = on_cpu[1].module("kernels.op").operations()
    op = operations["affine_matmul"]
    operations["affine_matmul"] = dataclasses.replace(op, triton=lambda **given: 1.5 * op.reference(**given))
    cases = [c for c in module.cuda_cases(*on_cpu) if "affine_matmul" in c.name]
    assert "affine_matmul: relative error 0." in cases[0].build(on_cpu[1]).wrong()
    assert cases[0].build(on_cpu[0]).wrong() is None


def test_an_operation_of_one_version_only_is_missing_in_the_other(on_cpu):
    reference, new = on_cpu
    del reference.module("kernels.op").operations()["affine_matmul"]
    case = next(c for c in module.cuda_cases(reference, new) if "affine_matmul" in c.name)
    assert case.build(new).wrong() is None
    with pytest.raises(Missing, match="no operation 'affine_matmul'"):
        case.build(reference)


def test_kernels_compile_in_every_copy_and_share_what_is_the_same(tmp_path: Path):
    keys, registers = set(), set()
    with loaded([working(ROOT, tmp_path / str(i)) for i in range(2)]) as sides:
        for side in sides:
            op = side.module("kernels.op").operations()["codebook_matmul"]
            arguments = op.sized(16, 256, 256, torch.bfloat16, "cpu").arguments
            (launch, *_) = side.module("kernels.tuning").recorded(op.triton, arguments)[1]
            assert launch.kernel.fn.__module__.startswith(f"{side.prefix}.kernels.")
            keys.add(launch.kernel.fn.cache_key)
            registers.add(side.module("kernels.aot").compile_launch(launch, "sm_90").registers)
    assert len(keys) == len(registers) == 1


@pytest.mark.alone
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_twice_the_kernels_are_slow_on_a_gpu_and_the_same_are_not(tmp_path: Path):
    pytest.importorskip("scipy", reason="the verdict of the gate needs scipy")

    def build(side, rounds):
        times = rounds if side.tree.label == "new" else 4
        x = torch.ones(2048, 2048, device="cuda", dtype=torch.bfloat16)

        def run(own: torch.Tensor) -> None:
            for _ in range(times):
                own @ own

        return Ready(lambda rng: partial(run, x.clone()), lambda: None)

    trees = write_tree(tmp_path / "old", {}), write_tree(tmp_path / "new", {})
    cases = [Case("twice", lambda s: build(s, 8)), Case("same", lambda s: build(s, 4))]
    rows = compared(*trees, lambda *_: cases, HeldClock(torch.device("cuda")), Rule(), progress=False)
    assert [row.verdict for row in rows] == ["SLOW", "OK"]


@pytest.mark.alone
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_held_clock_leaves_out_what_python_does_between_launches():
    x = torch.ones(256, 256, device="cuda")

    def call():
        x.add_(1)
        sum(range(2000))  # some tens of microseconds on the host
        x.add_(1)

    clock = HeldClock(torch.device("cuda"))
    clock(call, 5)
    assert clock(call, 21) < 2e-5  # two kernels of a few microseconds
