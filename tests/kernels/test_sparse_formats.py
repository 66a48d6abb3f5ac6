"""Sparse weights of every kind of values, interpreted: their references, the formats they are stored in, refusals."""

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
from kernels.packing import pack, unpack
from kernels.sparse_starts import mask_of_cells
from kernels.tuning import recorded
from quant import METHODS
from quant.engines.sparse import Sparse
from quant.formats import BitMask, NofM
from quant.methods.double import DynamicMap
from quant.methods.nf4 import NF
from quant.methods.none import Unquantized
from quant.methods.prune import Magnitude, NOfM
from quant.methods.uniform import Uniform
from tests.kernels.conftest import LOOPS, run_guarded

pytestmark = LOOPS
OPERATIONS: dict[str, Op] = {op.name: op for op in interpreted("kernels.sparse_formats").OPERATIONS}
PRODUCTS = ("n_of_m_matmul", "bitmask_coded_matmul")
DTYPES = (torch.float32, torch.float16)  # the interpreter cannot multiply bfloat16
EXAMPLES = [(name, e.label) for name, op in OPERATIONS.items() for e in op.examples(torch.float32, "cpu")]
KEPT = {
    "bf16": Unquantized("bfloat16"),
    "fp32": Unquantized("float32"),
    "int4": Uniform(4, 64),
    "int3-zero": Uniform(3, 16, zero="float"),
    "nf4": NF(bits=4, group=64),
    "nf4-double": NF(bits=4, group=16, scale=DynamicMap()),
    "mxfp4": METHODS["mxfp4"],
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def arguments_of(name: str, label: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return dict(next(e.arguments for e in OPERATIONS[name].examples(dtype, "cpu") if label in e.label))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "label"), EXAMPLES)
def test_the_kernel_is_its_reference(name: str, label: str, dtype: torch.dtype) -> None:
    op = OPERATIONS[name]
    arguments = next(e.arguments for e in op.examples(dtype, "cpu") if e.label == label)
    got = run_guarded(op, arguments)
    assert got.dtype == dtype
    assert op.disagreement(got, arguments) is None


@pytest.mark.parametrize("name", OPERATIONS)
def test_examples_are_distinct(name: str) -> None:
    labels = [e.label for e in OPERATIONS[name].examples(torch.float32, "cpu")]
    assert len(set(labels)) == len(labels) >= 12


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_row_of_the_product_does_not_depend_on_the_batch(name: str, dtype: torch.dtype) -> None:
    op = OPERATIONS[name]
    arguments = arguments_of(name, "-33x", dtype)
    x = arguments["x"]
    whole = op.triton(**arguments)
    for m in (2, 5, 16):
        assert torch.equal(op.triton(**{**arguments, "x": x[:m]}), whole[:m])
    alone = op.triton(**{**arguments, "x": x[:1]})
    assert torch.allclose(alone.float(), whole[:1].float(), rtol=2e-3, atol=2e-1 if dtype == torch.float16 else 1e-3)
    with interpreted("kernels.launchers").rows_alike():
        assert torch.equal(op.triton(**{**arguments, "x": x[:1]}), whole[:1])


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_batch_may_have_any_shape(name: str) -> None:
    op = OPERATIONS[name]
    arguments = arguments_of(name, "levels-w4-g16-5x")
    x = arguments["x"]
    flat = op.triton(**arguments)
    assert torch.equal(op.triton(**{**arguments, "x": x.expand(2, *x.shape)}), flat.expand(2, *flat.shape))
    nothing, launches = recorded(op.triton, {**arguments, "x": x[:0]})
    assert nothing.shape == (0, flat.shape[1])
    assert launches == []  # a GPU refuses a grid of no programs


@pytest.mark.parametrize("values", KEPT)
@pytest.mark.parametrize("pruner", ["2of4", "4of8", "3of7", "mask"])
def test_a_stored_weight_is_decoded_bit_by_bit(pruner: str, values: str) -> None:
    """In one launch, equal to the CPU's `decode` in float32: of every format, with every kind of kept values."""
    how = {"2of4": (2, 4), "4of8": (4, 8), "3of7": (3, 7)}
    method = Magnitude(0.4, values=KEPT[values]) if pruner == "mask" else NOfM(*how[pruner], values=KEPT[values])
    weight = draw(33, 1100)
    weight[3] = 0
    stored = method.quantize(weight)
    assert isinstance(stored, NofM | BitMask)
    ready = Sparse(stored)
    given = {**ready.decoded, "shape": stored.shape, "dtype": torch.float32}
    got, launches = recorded(OPERATIONS[ready.decoder].triton, given)
    assert len(launches) == 1
    launches[0].run()
    assert torch.equal(got, stored.decode())


@pytest.mark.parametrize("of", [2, 5, 8, 16])
def test_the_mask_of_cells_keeps_what_their_places_name(of: int) -> None:
    k, rows, keep = 1037, 3, of // 2
    order = torch.rand(rows, -(-k // of), of, generator=torch.Generator().manual_seed(of)).argsort(-1)
    places = order[..., :keep].sort(-1).values.to(torch.uint8)
    mask, starts = mask_of_cells(places, of, k)
    have = torch.zeros(rows, places.shape[1], of, dtype=torch.uint8).scatter(2, places.long(), 1).flatten(1)
    assert torch.equal(unpack(mask, 1, k), have[:, :k])
    for i in range(rows):
        for j in range(3):
            assert starts[i, j] == i * places.shape[1] * keep + have[i, : j * 512].sum()


@pytest.mark.parametrize("m", [1, 8])
def test_places_of_every_kind_reach_their_columns(m: int) -> None:
    """All 70 ways to keep four of eight, one after the other, with an x that takes out each column."""
    places = torch.combinations(torch.arange(8), 4).to(torch.uint8)
    values = torch.arange(1.0, 281.0)[None]
    indices = pack(places.reshape(1, -1), 3)
    want = torch.zeros(70, 8).scatter(1, places.long(), values.view(70, 4)).flatten()
    x = torch.eye(560)[:: 7 if m == 8 else 40]
    none = {"levels": None, "scale": None, "zero": None, "of": 8, "bits": 0, "group": "tensor", "rows": 0}
    run = OPERATIONS["n_of_m_matmul"].triton
    got = torch.cat([run(x[i : i + m], indices, values, **none) for i in range(0, len(x), m)])
    assert torch.equal(got[:, 0], want[:: 7 if m == 8 else 40])
    decode = OPERATIONS["n_of_m_dequantize"].triton
    assert torch.equal(decode(indices, values, **none, shape=(1, 560), dtype=torch.float32)[0], want)


CELLS, MASKED = (OPERATIONS[name].triton for name in PRODUCTS)
EXAMPLE = arguments_of("n_of_m_matmul", "8-affine")
PLAIN = arguments_of("n_of_m_matmul", "8-plain")
MASK = arguments_of("bitmask_coded_matmul", "levels")
WRONG = (
    (CELLS, EXAMPLE, {"of": 6}, ValueError, "half of every 4 or 8 weights must be kept, got of 6"),
    (CELLS, EXAMPLE, {"x": EXAMPLE["x"].double()}, TypeError, "x must be float32"),
    (CELLS, EXAMPLE, {"scale": None}, ValueError, "codes of kept weights need levels or a scale"),
    (CELLS, EXAMPLE, {"indices": EXAMPLE["indices"][:, 1:]}, ValueError, r"codes must be \[67, 194\]"),
    (CELLS, EXAMPLE, {"scale": EXAMPLE["scale"][:, 1:]}, ValueError, r"scale must be \[67, 9\]"),
    (CELLS, PLAIN, {"values": PLAIN["values"][:, 1:]}, ValueError, r"values must be \[67, 68\], got \[67, 67\]"),
    (CELLS, PLAIN, {"bits": 4}, ValueError, "values have no levels, scale or zero, and bits and rows are 0"),
    (MASKED, MASK, {"mask": MASK["mask"][:, 1:]}, ValueError, r"codes must be \[67, 17\]"),
    (MASKED, MASK, {"starts": MASK["starts"].float()}, TypeError, "starts must be int32 or int64"),
    (MASKED, MASK, {"starts": MASK["starts"].repeat(1, 2)}, ValueError, r"starts must be \[67, 1\] for \[67, 131\]"),
    (MASKED, MASK, {"codes": torch.ones(1, 4)}, TypeError, "bitmask_matmul takes floating values"),
    (MASKED, MASK, {"kept": MASK["kept"] + 9}, ValueError, "codes must be"),
)


@pytest.mark.parametrize(("run", "arguments", "change", "error", "text"), WRONG)
def test_what_does_not_fit_is_refused_with_the_value(
    run: Any, arguments: dict[str, Any], change: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        run(**{**arguments, **change})


# One-line defects, by module; each must be seen by the comparison on some example.
DEFECTS = {
    "places in the wrong order": ("sparse_kept", "w1 = tl.where(a == 1", "w1 = tl.where(a == 2"),
    "the last of four is forgotten": ("sparse_kept", "w7 = tl.where(d == 7, v, none)", "w7 = none"),
    "columns are exchanged": ("sparse_kept", "tl.join(tl.join(w0, w4)", "tl.join(tl.join(w4, w0)"),
    "the scale of the next group": ("sparse_kept", "at += j // GROUP", "at += (j + PIECE) // GROUP"),
    "the zero is not taken off": ("sparse_kept", "PIECE)) - z", "PIECE)) - 0 * z"),
    "a cell too narrow": ("sparse_coded", "// (OF // 2) * OF)", "// (OF // 2) * 4)"),
    "the next start": ("sparse_coded", "start // STEP, mask=row", "start // STEP + 1, mask=row"),
    "a step does not count on": ("sparse_coded", "before += count", "before += 0 * count"),
    "columns beyond k are kept": ("sparse_coded", ") & (col[:, None] < k)", ")"),
    "a split begins at the first": ("sparse_coded", "range(split * share, tl.minimum(k", "range(0, tl.minimum(k"),
    "a row of the scales is forgotten": ("sparse_kept", "[:, None] * side_row", "[:, None] * 0"),
    "codes of a word from the last": ("sparse_kept", "(4 - 4 * (t % 2) + 8 * (t // 2))", "(4 * t)"),
    "places of a word from the last": ("sparse_kept", "(wide * (7 - t))", "(wide * t)"),
    "the codes of a byte from the last": ("sparse_masked", "((BITS * left) & 31)", "((36 - BITS * left) & 31)"),
    "the fifth byte of codes is forgotten": ("sparse_masked", "if BITS == 4:  #", "if BITS == 5:  #"),
    "the next group's scale is not taken": ("sparse_masked", "s = tl.where(left <=", "s = tl.where(left < 0 *"),
    "the next group's zero begins late": ("sparse_masked", "z = tl.where(left <= over", "z = tl.where(left < over"),
    "a code of many bits loses its tail": ("sparse_masked", "values_ptr + byte_at + 1", "values_ptr + byte_at"),
    "the scale is forgotten when decoded": ("sparse_dequantize", "* s[:, :, None]", "* 1.0"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_comparison_sees_a_planted_defect(defect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, right, wrong = DEFECTS[defect]
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    for helper in ("decoding", "partials", "gemv", "small", "launchers", "sparse_tile"):
        monkeypatch.setitem(sys.modules, f"kernels.{helper}", interpreted(f"kernels.{helper}"))
    seen = []
    for name in ("sparse_kept", "sparse_masked", "sparse_coded", "sparse_dequantize", "sparse_formats"):
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


def test_operations_are_entered() -> None:
    assert set(OPERATIONS) <= set(operations())


def test_codes_under_a_mask_may_be_more_than_a_row_of_others() -> None:
    """2**31 bits in the one row that they lie in; nothing of them is touched here."""
    codes = torch.empty(1, 1 << 28, dtype=torch.uint8)
    given = {**MASK, "codes": codes, "kept": 1 << 29, "scale": torch.empty(1, 1 << 25)}
    assert len(recorded(MASKED, given)[1]) == 1
    with pytest.raises(ValueError, match="exceeds 2\\*\\*31 bits"):
        operations()["affine_dequantize"].triton(
            codes, torch.ones(1, 1), None, shape=(1, 1 << 29), bits=4, group="tensor", dtype=torch.float32
        )
