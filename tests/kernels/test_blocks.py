"""Block-sparse weights of every kind of values, interpreted: examples, the stored format, gradients, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from torch.library import opcheck

from kernels.aot import TARGETS, compile_launch
from kernels.dispatch import OPERATORS
from kernels.op import Op, interpreted, operations, relative_error
from kernels.packing import pack
from kernels.sparse_starts import mask_starts
from kernels.tuning import recorded
from quant.engines.blocks import Blocks as Ready
from quant.formats.kept_blocks import KeptBlocks
from quant.methods.blocks import Blocks
from quant.methods.double import DynamicMap
from quant.methods.nf4 import NF
from quant.methods.none import Unquantized
from quant.methods.uniform import Uniform
from tests.kernels.conftest import LOOPS, run_guarded

pytestmark = LOOPS
BLOCKS: dict[str, Op] = {op.name: op for op in interpreted("kernels.blocks").OPERATIONS}
DTYPES = (torch.float32, torch.float16)  # the interpreter multiplies bfloat16 as integers
EXAMPLES = [(name, e.label) for name, op in BLOCKS.items() for e in op.examples(torch.float32, "cpu")]
COMPILED = pytest.mark.skipif(bool(triton.knobs.runtime.interpret), reason="interpreted kernels cannot be compiled")
GRADED = {"blocks_matmul": "x", "blocks_grad": "dy"}
KEPT = {
    "bf16": Unquantized("bfloat16"),
    "fp32": Unquantized("float32"),
    "int4": Uniform(4, 64),
    "int3-zero": Uniform(3, 16, zero="float"),
    "nf4-double": NF(bits=4, group=16, scale=DynamicMap()),
}


def arguments_of(name: str, label: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return dict(next(e.arguments for e in BLOCKS[name].examples(dtype, "cpu") if label in e.label))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "label"), EXAMPLES)
def test_the_kernel_is_its_reference(name: str, label: str, dtype: torch.dtype) -> None:
    op = BLOCKS[name]
    arguments = next(e.arguments for e in op.examples(dtype, "cpu") if e.label == label)
    got = run_guarded(op, arguments)
    assert got.dtype == dtype
    assert op.disagreement(got, arguments) is None


@pytest.mark.parametrize("name", BLOCKS)
def test_examples_are_distinct(name: str) -> None:
    labels = [e.label for e in BLOCKS[name].examples(torch.float32, "cpu")]
    assert len(set(labels)) == len(labels) >= 16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("label", ["16x16-plain-33x", "8x8-affine-w4-g64-33x"])
@pytest.mark.parametrize("name", GRADED)
def test_a_row_of_the_product_does_not_depend_on_the_batch(name: str, label: str, dtype: torch.dtype) -> None:
    op, arguments, of = BLOCKS[name], arguments_of(name, label, dtype), GRADED[name]
    x = arguments[of]
    whole = op.triton(**arguments)
    for m in (2, 5, 16):
        assert torch.equal(op.triton(**{**arguments, of: x[:m]}), whole[:m])
    with interpreted("kernels.launchers").rows_alike():
        assert torch.equal(op.triton(**{**arguments, of: x[:1]}), whole[:1])


@pytest.mark.parametrize("name", GRADED)
def test_the_batch_may_have_any_shape(name: str) -> None:
    op, arguments, of = BLOCKS[name], arguments_of(name, "8x8-affine-w4-g64-5x"), GRADED[name]
    x = arguments[of]
    flat = op.triton(**arguments)
    assert torch.equal(op.triton(**{**arguments, of: x.expand(2, *x.shape)}), flat.expand(2, *flat.shape))
    nothing, launches = recorded(op.triton, {**arguments, of: x[:0]})
    assert nothing.shape == (0, flat.shape[1])
    assert launches == []  # a GPU refuses a grid of no programs


@pytest.mark.parametrize("values", KEPT)
@pytest.mark.parametrize("size", [(16, 16), (8, 8), (4, 32)])
def test_a_stored_weight_is_decoded_bit_by_bit(size: tuple[int, int], values: str) -> None:
    """In one launch, equal to the CPU's `decode` in float32, with values and scales that lie where they are stored."""
    weight = torch.randn(70, 1100, generator=torch.Generator().manual_seed(0))
    weight[32:64] = 0  # rows of blocks that are not kept
    stored = Blocks(0.6, *size, KEPT[values]).quantize(weight)
    assert isinstance(stored, KeptBlocks)
    ready = Ready(stored)
    given = {**ready.arguments, "shape": stored.shape, "dtype": torch.float32}
    got, launches = recorded(BLOCKS["blocks_dequantize"].triton, given)
    assert len(launches) == 1
    launches[0].run()
    assert torch.equal(got, stored.decode())
    assert stored.values is not None
    owned = {t.data_ptr() for t in stored.values.stored().values()}
    assert ready.arguments["values"].data_ptr() in owned
    zero = ready.arguments["zero"]  # decoded to float32; beside it the counts alone are derived
    assert ready.nbytes == 4 * stored.mask.numel() + (0 if zero is None else zero.nbytes)


def test_each_block_reaches_its_place() -> None:
    """One block of 8 x 8 at a time, at every place of a mask of more than a byte a row."""
    values = torch.arange(1.0, 65.0)[None]
    none = {"levels": None, "scale": None, "zero": None, "block": (8, 8), "bits": 0, "group": "tensor", "rows": 0}
    for place in range(2 * 19):
        mask = pack((torch.arange(38) == place).to(torch.uint8).view(2, 19), 1)
        given = {"mask": mask, "starts": mask_starts(mask, 19, 8), "values": values, **none}
        got = BLOCKS["blocks_dequantize"].triton(**given, shape=(16, 150), dtype=torch.float32)
        want = torch.zeros(16, 152)
        down, across = divmod(place, 19)
        want[8 * down : 8 * down + 8, 8 * across : 8 * across + 8] = values.view(8, 8)
        assert torch.equal(got, want[:, :150])


@pytest.mark.parametrize("across", [1, 8, 9, 100])
def test_the_counts_before_the_bytes_of_a_mask(across: int) -> None:
    have = (torch.rand(5, across, generator=torch.Generator().manual_seed(across)) < 0.5).to(torch.uint8)
    starts = mask_starts(pack(have, 1), across, 8)
    flat = have.flatten().long()
    for i in range(5):
        for j in range(starts.shape[1]):
            assert starts[i, j] == flat[: i * across + 8 * j].sum()


@pytest.mark.parametrize("label", ["16x16-plain-5x", "8x8-affine-w4-g64-5x", "nested"])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_operators_are_as_torch_wants_them(name: str, label: str) -> None:
    operator, arguments = OPERATORS[name], arguments_of(name, label.removesuffix("-5x") if "deq" in name else label)
    if name in GRADED:
        arguments[GRADED[name]] = arguments[GRADED[name]].clone().requires_grad_()
    opcheck(operator.overload, operator.flat(**arguments))


@pytest.mark.parametrize("name", GRADED)
def test_gradients_are_those_of_the_reference(name: str) -> None:
    """First and second derivatives in float64 against finite differences."""
    arguments, of = arguments_of(name, "8x8-plain-2x3x7"), GRADED[name]
    fixed = {key: value for key, value in arguments.items() if key != of}
    value = arguments[of].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: OPERATORS[name].call(**{of: v}, **fixed), value)
    assert torch.autograd.gradgradcheck(lambda v: OPERATORS[name].call(**{of: v}, **fixed), value)


@pytest.mark.parametrize("name", GRADED)
def test_many_rows_multiply_with_a_decoded_copy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.custom.available", lambda x: True)  # as on a GPU: the reference is not taken instead
    arguments, of = arguments_of(name, "8x8-affine-w4-g64-5x"), GRADED[name]
    operator = OPERATORS[name]
    with pytest.raises(ValueError, match="a Triton kernel needs a GPU"):
        operator.call(**arguments)
    launched: list[Tensor] = []

    def decoded(out: Tensor, weight: Any) -> None:
        launched.append(out)
        given = {key: value for key, value in arguments.items() if key not in ("n", "k", of)}
        shape = {"shape": tuple(out.shape), "dtype": out.dtype}
        out.copy_(operations()["blocks_dequantize"].reference(**given, **shape))

    monkeypatch.setattr("kernels.blocks.blocks_decode", decoded)
    x = torch.randn(300, arguments[of].shape[1])
    got = operator.call(**{**arguments, of: x})
    assert [tuple(t.shape) for t in launched] == [(67, 131)]
    assert relative_error(got, operator.op.exact({**arguments, of: x})) < 1e-6


EXAMPLE, PLAIN = (
    arguments_of("blocks_matmul", "8x8-affine-w4-g64-5x67x131"),
    arguments_of("blocks_matmul", "16x16-plain"),
)
WRONG = (
    (EXAMPLE, {"x": EXAMPLE["x"].double()}, TypeError, "x must be float32"),
    (EXAMPLE, {"block": (5, 8)}, ValueError, "powers of two up to 64, of 8 weights or more, got 5 x 8"),
    (EXAMPLE, {"block": (2, 2)}, ValueError, "got 2 x 2"),
    (EXAMPLE, {"block": (128, 8)}, ValueError, "got 128 x 8"),
    (EXAMPLE, {"n": 100}, ValueError, r"codes must be \[13, 3\]"),
    (EXAMPLE, {"starts": EXAMPLE["starts"].float()}, TypeError, "starts must be int32 or int64"),
    (EXAMPLE, {"starts": EXAMPLE["starts"][:1]}, ValueError, r"starts must be \[9, 3\] like the mask, got \[1, 3\]"),
    (EXAMPLE, {"scale": None}, ValueError, "codes of kept blocks need levels or a scale"),
    (EXAMPLE, {"values": EXAMPLE["values"][:, 1:]}, ValueError, "codes must be"),
    (PLAIN, {"values": PLAIN["values"][:, 1:]}, ValueError, r"values must be \[kept, 256\], got"),
    (PLAIN, {"bits": 4}, ValueError, "values have no levels, scale or zero, and bits and rows are 0"),
)


@pytest.mark.parametrize(("arguments", "change", "error", "text"), WRONG)
def test_what_does_not_fit_is_refused_with_the_value(
    arguments: dict[str, Any], change: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        BLOCKS["blocks_matmul"].triton(**{**arguments, **change})


@COMPILED
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", BLOCKS)
def test_it_fits_every_target(name: str, target: str) -> None:
    op = operations()[name]
    for m in (1, 16) if target == "sm_90" else (16,):
        for launch in recorded(op.triton, op.sized(m, 256, 2048, torch.bfloat16, "cpu").arguments)[1]:
            built = compile_launch(launch, target)
            assert built.spills == 0
            assert built.shared <= TARGETS[target].shared_limit
            if target.startswith("sm") and "values_ptr" in launch.arguments:
                assert built.widths["load values_ptr"] == 128
            if "BLOCK_M" in launch.arguments:
                assert built.tensor_core > 0


@COMPILED
@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
@pytest.mark.parametrize("label", ["1x8-", "8x1-", "64x64-", "1x1x1", "zeroed-w3", "rows3"])
def test_other_blocks_and_values_fit(label: str, target: str) -> None:
    op = operations()["blocks_matmul"]
    for example in op.examples(torch.float16, "cpu"):
        if label in example.label:
            for launch in recorded(op.triton, example.arguments)[1]:
                built = compile_launch(launch, target)
                assert built.spills == 0
                assert built.shared <= TARGETS[target].shared_limit
