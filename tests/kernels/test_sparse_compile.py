"""Sparse products compiled for GPUs that are not here, and torch's own product refused without one."""

from __future__ import annotations

import pytest
import torch
import triton

from kernels.aot import TARGETS, compile_launch
from kernels.op import operations
from kernels.sparse_torch import refusal, semi_structured
from kernels.tuning import recorded

compiled = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1: interpreted kernels cannot be compiled"
)
LABELS = (("two_of_four_matmul", "1x67x131"), ("two_of_four_matmul", "g64-1x67x131"), ("bitmask_matmul", "1x67x131"))


@compiled
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("name", ["two_of_four_matmul", "bitmask_matmul"])
def test_one_row_needs_neither_the_matrix_unit_nor_spills(name: str, target: str) -> None:
    op = operations()[name]
    for dtype in (torch.bfloat16, torch.float32):
        launch = recorded(op.triton, op.sized(1, 256, 1024, dtype, "cpu").arguments)[1][0]
        built = compile_launch(launch, target)
        assert built.spills == 0
        assert built.tensor_core == 0
        assert built.shared <= TARGETS[target].shared_limit


@compiled
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize(("name", "label"), LABELS)
def test_small_and_odd_weights_fit(name: str, label: str, target: str) -> None:
    op = operations()[name]
    arguments = next(e.arguments for e in op.examples(torch.float16, "cpu") if e.label == label)
    for rows in (1, 17):
        given = {**arguments, "x": arguments["x"].expand(rows, -1)}
        for launch in recorded(op.triton, given)[1]:
            assert compile_launch(launch, target).spills == 0


@compiled
def test_aligned_kept_weights_are_loaded_in_wide_words() -> None:
    for name, rows, bits in (("two_of_four_matmul", 1, 128), ("two_of_four_matmul", 16, 128)):
        op = operations()[name]
        launch = recorded(op.triton, op.sized(rows, 256, 1024, torch.bfloat16, "cpu").arguments)[1][0]
        assert compile_launch(launch, "sm_90").widths["load values_ptr"] == bits


def test_the_product_of_torch_is_refused_without_an_nvidia_gpu() -> None:
    weight = torch.zeros(64, 64, dtype=torch.bfloat16)
    assert "the weight is on cpu" in str(refusal(weight))
    with pytest.raises(ValueError, match="need an NVIDIA GPU; use two_of_four_matmul"):
        semi_structured(weight)
