"""The gradient of x from the packed weight: its kernel in the interpreter, and the whole product under gradcheck."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

import kernels
from kernels.aot import TARGETS, compile_launch
from kernels.op import Example, Op, interpreted, operations, relative_error
from kernels.packing import pack
from kernels.tuning import recorded
from tests.kernels.conftest import LOOPS, run_guarded

pytestmark = LOOPS
GRADS: dict[str, Op] = {op.name: op for op in interpreted("kernels.backward").OPERATIONS}
DTYPES = (torch.float32, torch.float16)  # the interpreter multiplies bfloat16 as integers
EXAMPLES = [(name, e.label) for name, op in GRADS.items() for e in op.examples(torch.float32, "cpu")]
ODD = (1, 3, 17, 63, 64, 65, 127)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "label"), EXAMPLES)
def test_the_kernel_is_its_reference(name: str, label: str, dtype: torch.dtype) -> None:
    op = GRADS[name]
    arguments = next(e.arguments for e in op.examples(dtype, "cpu") if e.label == label)
    got = run_guarded(op, arguments)
    assert got.dtype == dtype
    assert op.disagreement(got, arguments) is None


def weight(name: str, n: int, k: int, bits: int = 4, group: int = 32) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(n * 1000 + k)
    codes = pack(torch.randint(1 << bits, (n, k), generator=draw, dtype=torch.uint8), bits)
    scale = torch.rand(n, -(-k // group), generator=draw) + 0.1
    own: dict[str, Any] = {"codes": codes, "scale": scale, "k": k, "bits": bits, "group": group}
    if name == "affine_grad":
        return own | {"zero": torch.rand(scale.shape, generator=draw) * 15}
    return own | {"levels": torch.randn(1, 1 << bits, generator=draw), "rows": 0}


@pytest.mark.parametrize("name", GRADS)
@pytest.mark.parametrize(("m", "n", "k"), [(ODD[i], ODD[(2 * i + 3) % 7], ODD[(3 * i + 1) % 7]) for i in range(7)])
def test_odd_sizes(name: str, m: int, n: int, k: int) -> None:
    arguments = {"dy": torch.randn(m, n, generator=torch.Generator().manual_seed(m)), **weight(name, n, k)}
    assert GRADS[name].disagreement(run_guarded(GRADS[name], arguments), arguments) is None


@pytest.mark.parametrize("name", GRADS)
def test_a_transposed_sliced_or_expanded_gradient_is_read_by_its_strides(name: str) -> None:
    op, n = GRADS[name], 65
    own = weight(name, n, 70)
    draw = torch.Generator().manual_seed(5)
    ones = torch.ones((), dtype=torch.float32).expand(4, n)  # what y.sum().backward() passes
    for dy in (torch.randn(n, 4, generator=draw).T, torch.randn(4, 2 * n, generator=draw)[:, ::2], ones):
        assert not dy.is_contiguous()
        assert torch.equal(op.triton(dy=dy, **own), op.triton(dy=dy.contiguous(), **own))
    batch = torch.randn(2, 3, n, generator=draw)
    assert torch.equal(op.triton(dy=batch, **own), op.triton(dy=batch.view(6, n), **own).view(2, 3, 70))
    nothing, launches = recorded(op.triton, {"dy": batch[:0], **own})
    assert (nothing.shape, launches) == ((0, 3, 70), [])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", GRADS)
def test_a_row_of_the_gradient_does_not_depend_on_the_batch(name: str, dtype: torch.dtype) -> None:
    op, own = GRADS[name], weight(name, 63, 65)
    dy = torch.randn(33, 63, generator=torch.Generator().manual_seed(1)).to(dtype)
    whole = op.triton(dy=dy, **own)
    for i in (0, 13, 32):
        assert torch.equal(op.triton(dy=dy[i : i + 1], **own)[0], whole[i])


@pytest.mark.parametrize("name", GRADS)
def test_it_is_the_adjoint_of_the_product(name: str) -> None:
    """<dy, x w^T> = <dy w, x> for any x and dy."""
    own = weight(name, 65, 127)
    forward = operations()[name.replace("grad", "matmul")].reference
    draw = torch.Generator().manual_seed(2)
    x, dy = torch.randn(5, 127, generator=draw).double(), torch.randn(5, 65, generator=draw).double()
    settings = {key: value for key, value in own.items() if key != "k"}
    left = (dy * forward(x, **settings)).sum()
    right = (GRADS[name].reference(dy, **own) * x).sum()
    assert float((left - right).abs()) <= 1e-12 * float(left.abs())


def test_a_small_gradient_in_float16_does_not_underflow() -> None:
    """A scale of 1e-3 times a gradient of 1e-5 is not a float16; their sum over many rows is."""
    op = GRADS["affine_grad"]
    n, k = 1024, 64
    codes = torch.full((n, k), 255, dtype=torch.uint8)
    own = {"codes": codes, "scale": torch.full((n, 1), 1e-3), "zero": None, "k": k, "bits": 8, "group": "channel"}
    dy = torch.full((1, n), 2.0**-17, dtype=torch.float16)
    want = op.exact({"dy": dy, **own})
    assert relative_error(op.triton(dy, **own), want) < 2**-10
    assert relative_error((dy.double() * 1e-3).half().double() @ torch.full((n, k), 127.0).double(), want) > 0.01


REFUSED = [
    ({"dy": torch.zeros(5, 66)}, ValueError, r"dy must be \[..., 67\] for codes of 67 rows, got shape \[5, 66\]"),
    ({"dy": torch.zeros(5, 67, dtype=torch.float64)}, TypeError, "dy must be float32"),
    ({"k": 140}, ValueError, r"codes must be \[67, 70\]"),
    ({"scale": torch.ones(67, 2)}, ValueError, r"scale must be \[67, 3\]"),
    ({"levels": torch.zeros(1, 17)}, ValueError, r"levels must be \[1, 1 .. 16\], got \[1, 17\]"),
    ({"rows": -1}, ValueError, "rows must be 0 .one table. or the rows that share a table, got -1"),
    ({"levels": torch.zeros(1, 16, dtype=torch.int32)}, TypeError, "levels must be float32"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_unsuitable_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    op = GRADS["codebook_grad"]
    example: Example = next(e for e in op.examples(torch.float32, "cpu") if e.label.startswith("w4-g64-5x67"))
    with pytest.raises(error, match=message):
        op.triton(**{**example.arguments, **change})


COMPILED = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1: interpreted kernels cannot be compiled"
)


@COMPILED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("c", range(len(GRADS["codebook_grad"].triton.__globals__["GRAD"].configs)))
@pytest.mark.parametrize("name", GRADS)
def test_every_configuration_fits_its_target(name: str, c: int, dtype: torch.dtype) -> None:
    op = operations()[name]
    launch = recorded(op.triton, op.sized(64, 256, 1024, dtype, "cpu").arguments)[1][0]
    built = compile_launch(launch, "sm_90", launch.kernel.configs[c])
    assert built.spills == 0
    assert built.shared <= TARGETS["sm_90"].shared_limit
    assert (built.tensor_core > 0) == (dtype == torch.bfloat16)


SPECIAL = ("w3-g64-5", "w4-g48", "w8-tensor", "rows16", "w3-g32-5x67x131-float16-zero")


@COMPILED
@pytest.mark.parametrize(("name", "label"), [e for e in EXAMPLES if any(word in e[1] for word in SPECIAL)])
def test_other_widths_groups_and_tables_fit(name: str, label: str) -> None:
    op = operations()[name]
    arguments = next(e.arguments for e in op.examples(torch.float16, "cpu") if e.label == label)
    # single bytes of unaligned rows are predicated one by one, which takes more scalar registers than gfx942 has
    for target in ("sm_80",) if label.startswith("w8") else ("sm_80", "gfx942"):
        launch = recorded(op.triton, arguments)[1][0]
        assert compile_launch(launch, target).spills == 0


DEFECTS = {
    "rows beyond n are summed": ("(out_row[:, None] < m) & (row[None, :] < n), other=0.0", "out_row[:, None] < m"),
    "dy is read as if contiguous": ("row.to(tl.int64)[None, :] * dy_col", "row.to(tl.int64)[None, :]"),
    "the scale of the first tile": ("at += start // GROUP", "at += 0 // GROUP"),
    "the last columns are not written": ("(col[None, :] < k))", "(col[None, :] < k - 1))"),
    "only the last rows count": ("w.to(compute), acc, input", "w.to(compute), acc * 0, input"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_comparison_sees_a_planted_defect(defect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = DEFECTS[defect]
    source = (Path(kernels.__path__[0]) / "backward.py").read_text()
    assert right in source
    name = f"backward_{list(DEFECTS).index(defect)}"
    (tmp_path / f"{name}.py").write_text(source.replace(right, wrong))
    monkeypatch.syspath_prepend(str(tmp_path))
    op: Op = interpreted(name).OPERATIONS[0]
    arguments = {"dy": torch.randn(127, 5).T, **weight("codebook_grad", 127, 131)}
    got: Tensor = run_guarded(op, arguments)
    assert op.disagreement(got, arguments) is not None
