"""The model that predicts times from counts, its devices, and the page that says so."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch
import triton

from bench.static.devices import DEVICES
from bench.static.model import matrix_operations, predict
from bench.static.predict import Line, page, show
from bench.static.screen import Screen
from kernels.aot import compile_launch
from kernels.op import operations
from kernels.tuning import Launch, recorded

pytestmark = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1: interpreted kernels cannot be compiled"
)


def launch() -> Launch:
    op = operations()["affine_matmul"]
    return recorded(op.triton, op.sized(16, 512, 4096, torch.bfloat16, "cpu").arguments)[1][0]


def test_slower_kinds_of_matrix_instructions_count_for_more() -> None:
    assert matrix_operations("IMMA.16832.S8.S8") == 0.5 * 2 * 16 * 8 * 32
    assert matrix_operations("HMMA.1688.F32.TF32") == 2 * 2 * 16 * 8 * 8
    assert matrix_operations("v_mfma_f32_16x16x8_xf32") == 2 * 2 * 16 * 16 * 8
    assert matrix_operations("v_mfma_f32_32x32x2_f32") == 8 * 2 * 32 * 32 * 2
    assert matrix_operations("v_mfma_f32_32x32x8_bf16") == 2 * 32 * 32 * 8
    assert matrix_operations("v_mfma_i32_16x16x32_i8") == 0.5 * 2 * 16 * 16 * 32


def test_the_rates_of_a_device_agree_with_one_another() -> None:
    per_clock = {"sm_80": 2048, "sm_90": 4096, "gfx942": 2048}  # dense bfloat16 operations of a unit: white papers
    for device in DEVICES:
        assert device.tensor == pytest.approx(device.units * device.clock * per_clock[device.target], rel=2e-3)


def test_a_prediction_is_the_largest_of_three_bounds() -> None:
    one = launch()
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


LINE = Line("some_matmul", "16", DEVICES[0], 40e-6, "issue", 10e-6, "BLOCK_N 64, 4 warps")


def test_the_page_says_that_it_predicts() -> None:
    text = page([LINE])
    assert "predictions of a model, not measurements" in text
    for device in DEVICES:
        assert f"## {device.name}: predictions" in text
    assert "| some_matmul | 16 | 40.0 | issue | 10.0 | 25 | BLOCK_N 64, 4 warps |" in text


@pytest.mark.parametrize("rich", [True, False])
def test_the_terminal_says_that_it_predicts(rich: bool) -> None:
    file = io.StringIO()
    screen = Screen(file)
    screen.rich = screen.rich and rich
    show(screen, [LINE])
    text = file.getvalue()
    assert "predicted" in text
    assert "not measured" in text
    assert "40.0 us issue, 25 %" in text
