"""The product with a low-rank update in its epilogue: its kernel in the interpreter, and compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import triton

import kernels
from kernels.aot import TARGETS, compile_launch
from kernels.op import Op, interpreted, operations, relative_error
from kernels.tuning import recorded
from tests.kernels.conftest import LOOPS, run_guarded

pytestmark = LOOPS
FUSED: dict[str, Op] = {op.name: op for op in interpreted("kernels.lora").OPERATIONS}
DTYPES = (torch.float32, torch.float16)  # the interpreter multiplies bfloat16 as integers
EXAMPLES = [(name, e.label) for name, op in FUSED.items() for e in op.examples(torch.float32, "cpu")]
COMPILED = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1: interpreted kernels cannot be compiled"
)


def arguments_of(name: str, label: str = "w4-g64-5x67x131", dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return dict(next(e.arguments for e in FUSED[name].examples(dtype, "cpu") if e.label.startswith(label)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "label"), EXAMPLES)
def test_the_kernel_is_its_reference(name: str, label: str, dtype: torch.dtype) -> None:
    op = FUSED[name]
    arguments = arguments_of(name, label, dtype)
    got = run_guarded(op, arguments)
    assert got.dtype == dtype
    assert op.disagreement(got, arguments) is None


@pytest.mark.parametrize("name", FUSED)
def test_without_an_update_it_is_the_product_and_of_zero_x_the_update(name: str) -> None:
    op, arguments = FUSED[name], arguments_of(name)
    settings = {key: value for key, value in arguments.items() if key not in ("inner", "b")}
    product = operations()[name.replace("lora", "matmul")].reference(**settings)
    nothing = op.triton(**{**arguments, "b": torch.zeros_like(arguments["b"])})
    assert relative_error(nothing, product) < 2**-20
    update = op.triton(**{**arguments, "x": torch.zeros_like(arguments["x"])})
    assert relative_error(update, arguments["inner"] @ arguments["b"].T) < 2**-20


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_a_row_does_not_depend_on_the_batch_nor_the_batch_on_its_shape(name: str, dtype: torch.dtype) -> None:
    op, arguments = FUSED[name], arguments_of(name, "w3-channel-33x", dtype)
    x, inner = arguments["x"], arguments["inner"]
    whole = op.triton(**arguments)
    for i in (0, 13, 32):
        assert torch.equal(op.triton(**{**arguments, "x": x[i], "inner": inner[i]}), whole[i])
    batch = op.triton(**{**arguments, "x": x.view(3, 11, -1), "inner": inner.view(3, 11, -1)})
    assert torch.equal(batch, whole.view(3, 11, -1))
    nothing, launches = recorded(op.triton, {**arguments, "x": x[:0], "inner": inner[:0]})
    assert (nothing.shape, launches) == ((0, whole.shape[1]), [])


@pytest.mark.parametrize("name", FUSED)
def test_factors_may_lie_in_any_order_and_have_another_dtype_than_x(name: str) -> None:
    op, arguments = FUSED[name], arguments_of(name, dtype=torch.float16)
    turned = {key: arguments[key].T.contiguous().T for key in ("inner", "b")}
    assert torch.equal(op.triton(**{**arguments, **turned}), op.triton(**arguments))
    halves = {key: arguments[key].half() for key in ("inner", "b")}
    assert op.disagreement(op.triton(**{**arguments, **halves}), {**arguments, **halves}) is None


REFUSED = [
    ({"b": torch.zeros(66, 8)}, r"b must be \[67, r\].*got \[66, 8\] and \[5, 8\]"),
    ({"inner": torch.zeros(5, 9)}, r"got \[67, 8\] and \[5, 9\]"),
    ({"b": torch.zeros(67, 65), "inner": torch.zeros(5, 65)}, r"r of 1 .. 64"),
    ({"x": torch.zeros(5, 140)}, r"codes must be \[67, 70\]"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_unsuitable_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments = arguments_of("codebook_lora", "w4-g64-5x67x131")
    rank = {"inner": torch.zeros(5, 8), "b": torch.zeros(67, 8)}
    with pytest.raises(ValueError, match=message):
        FUSED["codebook_lora"].triton(**{**arguments, **rank, **change})


@COMPILED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("c", range(len(FUSED["codebook_lora"].triton.__globals__["LORA"].configs)))
@pytest.mark.parametrize("name", FUSED)
def test_every_configuration_fits_its_target(name: str, c: int, dtype: torch.dtype) -> None:
    op = operations()[name]
    launch = recorded(op.triton, op.sized(64, 256, 1024, dtype, "cpu").arguments)[1][0]
    built = compile_launch(launch, "sm_90", launch.kernel.configs[c])
    assert built.spills == 0
    assert built.shared <= TARGETS["sm_90"].shared_limit
    assert (built.tensor_core > 0) == (dtype == torch.bfloat16)  # float32 factors beside float32 x are exact


@pytest.mark.parametrize("name", FUSED)
def test_columns_shared_out_among_programs_take_the_update_once(name: str) -> None:
    op = FUSED[name]
    arguments = op.sized(5, 17, 1024, torch.float32, "cpu").arguments
    launches = recorded(op.triton, arguments)[1]
    assert len(launches) == 2
    assert op.disagreement(run_guarded(op, arguments), arguments) is None


DEFECTS = {
    "the update replaces the product": ("tl.dot(b, inner, acc, input", "tl.dot(b, inner, acc * 0, input"),
    "the product is doubled": ("        r = tl.arange", "        acc *= 2\n        r = tl.arange"),
    "entries of b beyond the rank are summed": (
        "(row[:, None] < n) & (r[None, :] < rank), other=0.0", "row[:, None] < n, other=0.0"),
    "b is read by columns": (
        "row.to(tl.int64)[:, None] * rank + r[None, :]", "row.to(tl.int64)[:, None] + r[None, :] * n"),
    "the last row has no update": ("(out_row[None, :] < m) & (r[:", "(out_row[None, :] < m - 1) & (r[:"),
    "every share adds the update": ("if split == 0:", "if split >= 0:"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_comparison_sees_a_planted_defect(defect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = DEFECTS[defect]
    source = (Path(kernels.__path__[0]) / "lora.py").read_text()
    assert right in source
    name = f"lora_{list(DEFECTS).index(defect)}"
    (tmp_path / f"{name}.py").write_text(source.replace(right, wrong))
    monkeypatch.syspath_prepend(str(tmp_path))
    op: Op = interpreted(name).OPERATIONS[0]
    examples = [e for e in op.examples(torch.float32, "cpu") if "g64-5x67" in e.label or "g32" in e.label]
    examples.append(op.sized(5, 17, 1024, torch.float32, "cpu"))
    assert any(op.disagreement(run_guarded(op, e.arguments), e.arguments) for e in examples)
