"""Every kernel compiled for GPUs that are not here: nothing spills, shared memory fits, products use the matrix unit.

Kernels are compiled exactly as they would be launched: the launches are recorded, not written down a second time.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
import triton

from kernels import aot
from kernels.aot import TARGETS, compile_launch
from kernels.op import operations
from kernels.tuning import Launch, recorded
from tests.kernels.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1: interpreted kernels cannot be compiled"
)
OPERATIONS = [name for name in operations() if name.startswith(("affine", "codebook", "w8a8")) and "_q" not in name]


def launches(name: str, dtype: torch.dtype, m: int = 16) -> list[Launch]:
    op = operations()[name]
    return recorded(op.triton, op.sized(m, 256, 1024, dtype, "cpu").arguments)[1]


def sized(name: str, dtype: torch.dtype, m: int = 16) -> Launch:
    return launches(name, dtype, m)[0]


def check(launch: Launch, target: str, config: triton.Config | None = None) -> aot.Compiled:
    built = compile_launch(launch, target, config)
    assert built.spills == 0
    assert built.shared <= TARGETS[target].shared_limit
    assert 0 < built.registers <= 512  # of 255 a thread on NVIDIA, 512 on CDNA
    assert built.size > 25
    return built


FIXED = [(target, torch.bfloat16) for target in TARGETS] + [("sm_80", torch.float32), ("gfx942", torch.float32)]


@pytest.mark.parametrize(("target", "dtype"), FIXED, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_fixed_configuration_fits_every_target(name: str, target: str, dtype: torch.dtype) -> None:
    built = [check(launch, target) for launch in launches(name, dtype)]
    # float32 is multiplied exactly, which NVIDIA's matrix unit cannot; eight bits are whole numbers for either
    exact = dtype == torch.float32 and target != "gfx942" and not name.startswith("w8a8")
    product = name.endswith(("matmul", "grad", "lora"))
    assert any(b.tensor_core > 0 for b in built) == (product and not exact)


@pytest.mark.parametrize("m", [1, 64])
@pytest.mark.parametrize("name", ["affine_matmul", "codebook_matmul"])
def test_every_configuration_fits_float32_too(name: str, m: int) -> None:
    launch = sized(name, torch.float32, m)
    for config in launch.kernel.configs:
        check(launch, "sm_80", config)


SPECIAL = ("w3-g64-5", "w4-g48", "w8-tensor", "rows16", "w3-g32-5x67x131-float16-zero")
OTHERS = [
    (name, e.label)
    for name, op in INTERPRETED.items()
    for e in op.examples(torch.float16, "cpu")
    if any(word in e.label for word in SPECIAL)
]


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
@pytest.mark.parametrize(("name", "label"), OTHERS)
def test_other_widths_groups_and_tables_fit(name: str, label: str, target: str) -> None:
    op = operations()[name]
    arguments = next(e.arguments for e in op.examples(torch.float16, "cpu") if e.label == label)
    for launch in recorded(op.triton, arguments)[1]:
        check(launch, target)


def test_a_spill_is_seen() -> None:
    launch = sized("affine_matmul", torch.float32)
    large = triton.Config({"BLOCK_M": 64, "BLOCK_N": 128}, num_warps=4, num_stages=3)
    assert compile_launch(launch, "sm_80", large).spills > 0


def test_float32_is_not_multiplied_in_tf32() -> None:
    launch = sized("codebook_matmul", torch.float32, m=64)
    built = compile_launch(launch, "sm_90", launch.kernel.configs[-1])
    assert built.tensor_core == 0
    assert built.instructions["FFMA"] > 100


def test_aligned_rows_are_loaded_and_stored_in_wide_words() -> None:
    for name in ("affine_dequantize", "codebook_dequantize"):
        instructions = compile_launch(sized(name, torch.bfloat16), "sm_90").instructions
        assert "STG.E.128" in instructions  # eight values a store
        assert any(op.startswith(("LDG.E.64", "LDG.E.128")) for op in instructions)  # sixteen codes a load, or more
        assert not any(op.startswith("STG.E.U16") for op in instructions)


def test_an_interpreted_kernel_cannot_be_compiled() -> None:
    op = INTERPRETED["codebook_matmul"]
    launch = recorded(op.triton, next(iter(op.examples(torch.float16, "cpu"))).arguments)[1][0]
    with pytest.raises(ValueError, match="interpreted kernel cannot be compiled"):
        compile_launch(launch, "sm_90")


def test_large_strides_are_64_bit() -> None:
    launch = sized("codebook_matmul", torch.float16)
    far = dataclasses.replace(launch, arguments={**launch.arguments, "x_row": 2**33})
    signature, _, _ = aot._specialize(far.kernel.fn, {**far.arguments, **far.kernel.configs[0].kwargs})
    assert signature["x_row"] == "i64"
    assert signature["n"] == "i32"
    assert signature["x_col"] == "constexpr"
