"""Products with sparse weights, interpreted: their references, the formats they are stored in, and what is refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

import kernels
from kernels.op import Op, interpreted, operations
from kernels.packing import pack
from kernels.sparse_starts import mask_starts
from kernels.tuning import recorded
from quant.formats import Affine, BitMask, Dense, NofM
from quant.methods.none import Unquantized
from quant.methods.prune import Magnitude, NOfM
from quant.methods.uniform import Uniform
from tests.kernels.conftest import run_guarded

OPERATIONS: dict[str, Op] = {op.name: op for op in interpreted("kernels.sparse").OPERATIONS}
PAIRS, MASKED = (OPERATIONS[name].triton for name in ("two_of_four_matmul", "bitmask_matmul"))
DTYPES = (torch.float32, torch.float16)  # the interpreter cannot multiply bfloat16
EXAMPLES = [(name, e.label) for name, op in OPERATIONS.items() for e in op.examples(torch.float32, "cpu")]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "label"), EXAMPLES)
def test_the_kernel_is_its_reference(name: str, label: str, dtype: torch.dtype) -> None:
    op = OPERATIONS[name]
    arguments = next(e.arguments for e in op.examples(dtype, "cpu") if e.label == label)
    got = run_guarded(op, arguments)
    assert got.dtype == dtype
    assert op.disagreement(got, arguments) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_row_of_the_product_does_not_depend_on_the_batch(name: str, dtype: torch.dtype) -> None:
    op = OPERATIONS[name]
    arguments = next(e.arguments for e in op.examples(dtype, "cpu") if e.label.startswith("33x"))
    x = arguments["x"]
    whole = op.triton(**arguments)
    for m in (2, 5, 16):
        assert torch.equal(op.triton(**{**arguments, "x": x[:m]}), whole[:m])
    alone = op.triton(**{**arguments, "x": x[:1]})
    assert torch.allclose(alone.float(), whole[:1].float(), rtol=2e-3, atol=2e-2 if dtype == torch.float16 else 1e-4)
    with interpreted("kernels.launchers").rows_alike():
        assert torch.equal(op.triton(**{**arguments, "x": x[:1]}), whole[:1])


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_batch_may_have_any_shape(name: str) -> None:
    op = OPERATIONS[name]
    arguments = next(iter(op.examples(torch.float32, "cpu"))).arguments
    x = arguments["x"]
    flat = op.triton(**arguments)
    assert torch.equal(op.triton(**{**arguments, "x": x.expand(2, *x.shape)}), flat.expand(2, *flat.shape))
    nothing, launches = recorded(op.triton, {**arguments, "x": x[:0]})
    assert nothing.shape == (0, flat.shape[1])
    assert launches == []  # a GPU refuses a grid of no programs


@pytest.mark.parametrize("m", [1, 6])
@pytest.mark.parametrize("values", [Unquantized("bfloat16"), Unquantized("float32"), Uniform(4, 64)], ids=str)
@pytest.mark.parametrize("k", [256, 259, 1100])
def test_two_of_four_weights_are_read_as_they_are_stored(k: int, values: Any, m: int) -> None:
    stored = NOfM(2, 4, values=values).quantize(draw(70, k))
    assert isinstance(stored, NofM)
    x = draw(m, k, seed=1)
    inner = stored.values
    if isinstance(inner, Affine):
        assert isinstance(inner.scale, Tensor)
        got = PAIRS(x, stored.indices, inner.codes, inner.scale, group=inner.group)
    else:
        assert isinstance(inner, Dense)
        got = PAIRS(x, stored.indices, inner.values, None, group="tensor")
    want = x.double() @ stored.dequantize().double().T
    assert torch.linalg.vector_norm(got - want) <= 2**-20 * torch.linalg.vector_norm(want)


@pytest.mark.parametrize("m", [1, 6])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9, 1.0])
def test_masked_weights_are_read_as_they_are_stored(sparsity: float, m: int) -> None:
    weight = draw(70, 1100)
    weight[3] = 0  # nothing is kept of this row, everything of the next one
    weight[4] += 100
    stored = Magnitude(sparsity).quantize(weight)
    assert isinstance(stored, BitMask)
    values = stored.values.values if isinstance(stored.values, Dense) else torch.empty(1, 0, dtype=torch.bfloat16)
    x = draw(m, 1100, seed=1)
    got = MASKED(x, stored.mask, mask_starts(stored.mask, 1100), values)
    want = x.double() @ stored.dequantize().double().T
    assert torch.linalg.vector_norm(got - want) <= 2**-20 * torch.linalg.vector_norm(want)


def test_starts_count_what_is_kept_before_each_512_columns() -> None:
    keep = draw(7, 1100) > 0
    starts = mask_starts(pack(keep.to(torch.uint8), 1), 1100)
    assert starts.dtype == torch.int32
    assert starts.shape == (7, 3)
    flat = keep.flatten()
    for i in range(7):
        for j in range(3):
            assert starts[i, j] == flat[: i * 1100 + j * 512].sum()


@pytest.mark.parametrize("m", [1, 8])
def test_places_of_every_kind_reach_their_columns(m: int) -> None:
    six = torch.tensor([[a, b] for a in range(4) for b in range(a + 1, 4)], dtype=torch.uint8)
    values = torch.arange(1.0, 13.0)[None]
    want = torch.zeros(24)
    for i, (a, b) in enumerate(six.tolist()):
        want[4 * i + a], want[4 * i + b] = 2 * i + 1, 2 * i + 2
    x = torch.eye(24)
    got = torch.cat(
        [PAIRS(x[i : i + m], pack(six.reshape(1, 12), 2), values, None, group="tensor") for i in range(0, 24, m)]
    )
    assert torch.equal(got[:, 0], want)


def test_values_beyond_those_that_are_given_are_not_read() -> None:
    x, mask = torch.ones(1, 16), pack(torch.ones(1, 16, dtype=torch.uint8), 1)
    fenced = torch.full((1, 40), float("nan"))
    fenced[:, :10] = 1
    for rows in (1, 2):
        got = MASKED(x.expand(rows, 16), mask, mask_starts(mask, 16), fenced[:, :10])
        assert (got == 10).all()


EXAMPLE = dict(next(e.arguments for e in operations()["two_of_four_matmul"].examples(torch.float32, "cpu")))
CODED = dict(
    next(e.arguments for e in operations()["two_of_four_matmul"].examples(torch.float32, "cpu") if "g64" in e.label)
)
MASK = dict(next(e.arguments for e in operations()["bitmask_matmul"].examples(torch.float32, "cpu")))
WRONG = (
    (PAIRS, EXAMPLE, {"x": EXAMPLE["x"].double()}, TypeError, "x must be float32"),
    (PAIRS, EXAMPLE, {"indices": EXAMPLE["indices"][:, 1:]}, ValueError, r"codes must be \[67, 17\]"),
    (PAIRS, EXAMPLE, {"values": EXAMPLE["values"][:, 1:]}, ValueError, r"values must be \[67, 66\], got \[67, 65\]"),
    (PAIRS, EXAMPLE, {"values": EXAMPLE["values"].double()}, TypeError, "values must be float32"),
    (PAIRS, EXAMPLE, {"scale": torch.ones(67, 2)}, ValueError, "codes .uint8., and no others, have scales"),
    (PAIRS, CODED, {"scale": None}, ValueError, "codes .uint8., and no others, have scales"),
    (PAIRS, CODED, {"scale": torch.ones(67, 3)}, ValueError, r"scale must be \[67, 2\]"),
    (MASKED, MASK, {"mask": MASK["mask"][:, 1:]}, ValueError, r"codes must be \[67, 17\]"),
    (MASKED, MASK, {"starts": MASK["starts"].float()}, TypeError, "starts must be int32 or int64"),
    (MASKED, MASK, {"starts": MASK["starts"].repeat(1, 2)}, ValueError, r"starts must be \[67, 1\] for \[67, 131\]"),
    (MASKED, MASK, {"values": MASK["values"][0]}, ValueError, "values one row"),
)


@pytest.mark.parametrize(("run", "arguments", "change", "error", "text"), WRONG)
def test_what_does_not_fit_is_refused_with_the_value(
    run: Any, arguments: dict[str, Any], change: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        run(**{**arguments, **change})


# One-line defects, by module; each must be seen by the comparison on some example.
DEFECTS = {
    "places in the wrong order": ("sparse_tile", "w1 = tl.where(p == 1", "w1 = tl.where(p == 2"),
    "places of codes from the last": ("sparse_tile", "(22 - 2 * t)", "(16 + 2 * t)"),
    "second code first": ("sparse_tile", "(4 - 4 * (t % 2) + 8", "(4 * (t % 2) + 8"),
    "first column is the lowest bit": ("sparse_tile", "(28 - 4 * tl.arange(0, 8))", "(4 * tl.arange(0, 8))"),
    "a byte of the mask does not count on": ("sparse_tile", "count, tl.cumsum(count, axis=1)", "count, count"),
    "a step does not count on": ("sparse_tile", "return w, before + count", "return w, before + 0 * count"),
    "the next start": ("sparse_products", "load(starts_ptr + at, mask=row", "load(starts_ptr + at + 1, mask=row"),
    "the scale of the next group": ("sparse_tile", "at += j // GROUP", "at += (j + PIECE) // GROUP"),
    "columns beyond k are kept": ("sparse_products", ") & (col[:, None] < k)", ")"),
    "a split begins at the first": ("sparse_products", "range(split * share, tl.minimum(k", "range(0, tl.minimum(k"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_comparison_sees_a_planted_defect(defect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, right, wrong = DEFECTS[defect]
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    for helper in ("decoding", "partials", "gemv", "small", "launchers"):
        monkeypatch.setitem(sys.modules, f"kernels.{helper}", interpreted(f"kernels.{helper}"))
    seen = []
    for name in ("sparse_tile", "sparse_products", "sparse"):
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
    assert any(
        op.disagreement(run_guarded(op, e.arguments), e.arguments)
        for op in seen
        for e in op.examples(torch.float32, "cpu")
    )
