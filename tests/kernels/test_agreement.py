"""Every Triton kernel, interpreted, against its float64 reference on every example."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import triton

import kernels
from kernels.op import Op, interpreted
from kernels.tuning import recorded
from tests.kernels.conftest import INTERPRETED, run_guarded

pytestmark = [
    pytest.mark.skipif(
        triton.__version__ < "3.7" and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
        reason="the interpreter of triton 3.6 cannot run a loop under numpy 2.4 or later",
    ),
    pytest.mark.filterwarnings(
        "ignore:Conversion of an array with ndim > 0:DeprecationWarning"
    ),  # the same loop before
]
DTYPES = (torch.float32, torch.float16)  # the interpreter multiplies bfloat16 as integers; the GPU tests cover it
EXAMPLES = [(name, e.label) for name, op in INTERPRETED.items() for e in op.examples(torch.float32, "cpu")]
PRODUCTS = [name for name in INTERPRETED if name.endswith("matmul")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "label"), EXAMPLES)
def test_the_kernel_is_its_reference(name: str, label: str, dtype: torch.dtype) -> None:
    op = INTERPRETED[name]
    arguments = next(e.arguments for e in op.examples(dtype, "cpu") if e.label == label)
    got = run_guarded(op, arguments)
    assert got.dtype == dtype
    assert op.disagreement(got, arguments) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("label", ["w3-channel-33x", "w4-g64-17x"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_row_of_the_product_does_not_depend_on_the_batch(name: str, label: str, dtype: torch.dtype) -> None:
    op = INTERPRETED[name]
    arguments = next(e.arguments for e in op.examples(dtype, "cpu") if e.label.startswith(label))
    x = arguments["x"]
    whole = op.triton(**arguments)
    for m in (2, 5, 16):
        assert torch.equal(op.triton(**{**arguments, "x": x[:m]}), whole[:m])
    with interpreted("kernels.launchers").rows_alike():
        assert torch.equal(op.triton(**{**arguments, "x": x[:1]}), whole[:1])


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_batch_may_have_any_shape(name: str) -> None:
    op = INTERPRETED[name]
    arguments = next(iter(op.examples(torch.float32, "cpu"))).arguments
    x = arguments["x"]
    flat = op.triton(**arguments)
    assert torch.equal(op.triton(**{**arguments, "x": x.expand(2, *x.shape)}), flat.expand(2, *flat.shape))
    assert torch.equal(op.triton(**{**arguments, "x": x[0]}), op.triton(**{**arguments, "x": x[:1]})[0])
    nothing, launches = recorded(op.triton, {**arguments, "x": x[:0]})
    assert nothing.shape == (0, flat.shape[1])
    assert launches == []  # a GPU refuses a grid of no programs


def test_a_single_row_has_a_kernel_of_its_own_that_agrees_to_rounding() -> None:
    for name in PRODUCTS:
        op = INTERPRETED[name]
        arguments = next(e.arguments for e in op.examples(torch.float32, "cpu") if e.label.startswith("w4-g64-5x"))
        one, two = (op.triton(**{**arguments, "x": arguments["x"][:m]}) for m in (1, 2))
        assert not torch.equal(one, two[:1])
        assert torch.allclose(one, two[:1], rtol=1e-5, atol=1e-4)


def test_a_group_of_scale_zero_decodes_to_zero() -> None:
    for name in ("codebook_dequantize", "affine_dequantize"):
        op = INTERPRETED[name]
        arguments = next(e.arguments for e in op.examples(torch.float32, "cpu") if e.label.startswith("w4-g64-5x"))
        got = op.triton(**arguments)
        assert arguments["scale"][0, 2] == 0
        assert torch.count_nonzero(got[0, 128:]) == 0
        assert torch.count_nonzero(got[0, :128]) > 0


# One-line defects that real kernels had, by module; each must be seen by the comparison on some example of a family.
DEFECTS = {
    "scale of the next group, one row": ("gemv", "side + head // GROUP", "side + (head + PIECE) // GROUP"),
    "scale of the next group, more rows": ("small", "side + start // GROUP", "side + (start + BLOCK_K) // GROUP"),
    "scale of the next group, decoded": ("dequantize", "at += start // GROUP", "at += (start + BLOCK_K) // GROUP"),
    "second nibble first": ("decoding", "shift = 8 - BITS - BITS * ", "shift = BITS * "),
    "a code that crosses bytes loses its tail": ("decoding", "word = word * 256 + ", "word = word * 256 + 0 * "),
    "columns beyond k are kept, one row": ("gemv", "mask=col < k, other", "mask=col < k + 1, other"),
    "columns beyond k are kept, more rows": (
        "small",
        "(out_row[None, :] < m) & (col[:, None] < k), other=0.0",
        "out_row[None, :] < m",
    ),
    "x is read as if contiguous": ("small", "col.to(tl.int64)[:, None] * x_col", "col.to(tl.int64)[:, None]"),
    "the last rows are not written": ("small", "mask=(out_row[None, :] < m)", "mask=(out_row[None, :] < m - 1)"),
    "a scale of the row is forgotten": ("small", "acc *= s[:, None]", "acc += 0 * s[:, None]"),
    "the offset of nested scales is forgotten": (
        "decoding",
        "value += tl.load(nest_offset",
        "value += 0 * tl.load(nest_offset",
    ),
    "nested scales of the next block": ("decoding", "at // NEST", "(at + 1) // NEST"),
    "a scale of the row is forgotten, one row": ("gemv", "        y *= scales_at(", "        y += 0 * scales_at("),
    "the zero is not taken off, one row": ("gemv", "total -= z * tl.sum", "total -= 0 * z * tl.sum"),
}
CHAIN = ("decoding", "partials", "gemv", "small", "dequantize", "launchers")


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_comparison_sees_a_planted_defect(defect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, right, wrong = DEFECTS[defect]
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    seen = []
    for name in (*CHAIN, "affine", "codebook"):
        source = (Path(kernels.__path__[0]) / f"{name}.py").read_text()
        assert name != where or right in source
        file = tmp_path / f"{name}.py"
        file.write_text(source.replace(right, wrong) if name == where else source)
        spec = importlib.util.spec_from_file_location(f"kernels.{name}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"kernels.{name}", module)
        spec.loader.exec_module(module)
        seen += getattr(module, "OPERATIONS", ())
    with np.errstate(all="ignore"):  # a defect may read anything
        assert any(
            op.disagreement(run_guarded(op, e.arguments), e.arguments)
            for op in seen
            for e in op.examples(torch.float32, "cpu")
        )


def test_the_comparison_sees_a_wrong_shape_a_wrong_size_and_a_value_left_out() -> None:
    op: Op = INTERPRETED["affine_matmul"]
    arguments = next(iter(op.examples(torch.float32, "cpu"))).arguments
    right = op.triton(**arguments)
    assert "shape" in str(op.disagreement(right.T, arguments))
    assert "relative error 1 exceeds" in str(op.disagreement(2 * right, arguments))
    left_out = right.clone()
    left_out[-1, -1] = float("nan")
    assert "relative error nan" in str(op.disagreement(left_out, arguments))
    shifted = dataclasses.replace(op, reference=lambda **a: op.reference(**{**a, "scale": a["scale"].roll(1, dims=-1)}))
    assert shifted.disagreement(right, arguments) is not None
