"""Weights of which two share a code, interpreted: every example, the stored format, the order of a pair, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from kernels.aot import TARGETS, compile_launch
from kernels.dispatch import OPERATORS
from kernels.op import Op, interpreted, operations
from kernels.packing import pack
from kernels.tuning import recorded
from quant.formats import Vectors
from quant.methods.gaussian import Pairs
from tests.kernels.conftest import LOOPS, run_guarded

pytestmark = LOOPS
PAIRS: dict[str, Op] = {op.name: op for op in interpreted("kernels.pairs").OPERATIONS}
DTYPES = (torch.float32, torch.float16)  # the interpreter multiplies bfloat16 as integers
EXAMPLES = [(name, e.label) for name, op in PAIRS.items() for e in op.examples(torch.float32, "cpu")]
COMPILED = pytest.mark.skipif(bool(triton.knobs.runtime.interpret), reason="interpreted kernels cannot be compiled")


def arguments_of(name: str, label: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return dict(next(e.arguments for e in PAIRS[name].examples(dtype, "cpu") if e.label.startswith(label)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "label"), EXAMPLES)
def test_the_kernel_is_its_reference(name: str, label: str, dtype: torch.dtype) -> None:
    op = PAIRS[name]
    arguments = next(e.arguments for e in op.examples(dtype, "cpu") if e.label == label)
    got = run_guarded(op, arguments)
    assert got.dtype == dtype
    assert op.disagreement(got, arguments) is None


@pytest.mark.parametrize("name", PAIRS)
def test_examples_are_distinct_and_of_every_width(name: str) -> None:
    examples = list(PAIRS[name].examples(torch.float32, "cpu"))
    assert len({e.label for e in examples}) == len(examples)
    assert {e.arguments["bits"] for e in examples} == set(range(1, 9))


@pytest.mark.parametrize("group", [7, 64, "channel", "tensor"])
@pytest.mark.parametrize("k", [1, 2, 75, 256])
def test_a_stored_weight_is_decoded_bit_by_bit(k: int, group: int | str) -> None:
    """In one launch, equal to the CPU's `decode` in float32, whether rows and groups end between or within pairs."""
    stored = Pairs(group).quantize(torch.randn(9, k, generator=torch.Generator().manual_seed(k)))
    assert isinstance(stored, Vectors)
    own = {"codes": stored.codes, "levels": stored.levels, "scale": stored.scale, "bits": 4, "group": group}
    got, launches = recorded(PAIRS["pairs_dequantize"].triton, {**own, "shape": (9, k), "dtype": torch.float32})
    assert len(launches) == 1
    launches[0].run()
    assert torch.equal(got, stored.decode())


@pytest.mark.parametrize("m", [1, 8])
def test_the_values_of_a_pair_are_of_adjacent_columns_in_their_order(m: int) -> None:
    levels = torch.arange(1.0, 33.0).view(16, 2)
    codes = pack(torch.arange(16, dtype=torch.uint8)[None], 4)
    x = torch.eye(32)
    run = PAIRS["pairs_matmul"].triton
    scale = torch.ones(1, 1)
    got = torch.cat([run(x[i : i + m], codes, levels, scale, bits=4, group="tensor") for i in range(0, 32, m)])
    assert torch.equal(got[:, 0], levels.flatten())


def test_in_registers_the_values_of_a_pair_lie_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order in which the PTX look-ups of first and second values are joined; the look-up itself is stood in for.

    That the PTX returns the levels of first and second codes is tested in `test_decoding`.
    """
    small = interpreted("kernels.small")
    decoding = interpreted("kernels.decoding")
    assert small.units_of.fn.__globals__ is vars(decoding)
    from triton import language as tl

    def looked_up(packed: Any, planes: Any) -> Any:
        def level(code: Any) -> Any:
            word = tl.full(code.shape, 0, tl.int32)
            for i in range(4):
                high = planes[i] >> (8 * (code & 3)) & 255
                low = planes[4 + i] >> (8 * (code & 3)) & 255
                word = tl.where(code >> 2 == i, high * 256 + low, word)
            return word.to(tl.int16)

        return level(packed.to(tl.int32) >> 4), level(packed.to(tl.int32) & 15)

    monkeypatch.setattr(decoding, "_looked_up", looked_up)
    for name in ("pairs_matmul", "pairs_grad"):
        arguments = arguments_of(name, "w4-g1024-2x65x2048", torch.float16)
        launch = recorded(PAIRS[name].triton, arguments)
        for each in launch[1]:
            if "PTX" in each.arguments:
                object.__setattr__(each, "arguments", {**each.arguments, "PTX": True, "UPCAST": False})
            each.run()
        assert PAIRS[name].disagreement(launch[0], arguments) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_of_the_product_does_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    op, arguments = PAIRS["pairs_matmul"], arguments_of("pairs_matmul", "w4-g64-17x", dtype)
    x = arguments["x"]
    whole = op.triton(**arguments)
    for m in (2, 5, 16):
        assert torch.equal(op.triton(**{**arguments, "x": x[:m]}), whole[:m])
    with interpreted("kernels.launchers").rows_alike():
        assert torch.equal(op.triton(**{**arguments, "x": x[:1]}), whole[:1])


def test_gradients_are_those_of_the_reference() -> None:
    """First and second derivatives in float64 against finite differences, through the dispatcher."""
    for name, of in (("pairs_matmul", ("x",)), ("pairs_grad", ("dy",)), ("pairs_lora", ("x", "inner", "b"))):
        arguments = arguments_of(name, "w2-g128-3x3x7")
        fixed = {key: value for key, value in arguments.items() if key not in of}
        values = tuple(arguments[key].double().requires_grad_() for key in of)

        def function(*given: Tensor, _name: str = name, _of: Any = of, _fixed: Any = fixed) -> Tensor:
            out: Tensor = OPERATORS[_name].call(**dict(zip(_of, given, strict=True)), **_fixed)
            return out

        assert torch.autograd.gradcheck(function, values)
        if name != "pairs_lora":
            assert torch.autograd.gradgradcheck(function, values)


EXAMPLE = arguments_of("pairs_matmul", "w4-g64-5x67x131")
WRONG = (
    ({"x": EXAMPLE["x"].double()}, TypeError, "x must be float32"),
    ({"levels": EXAMPLE["levels"].T}, ValueError, r"levels of pairs must be \[1 .. 16, 2\], got \[2, 16\]"),
    ({"levels": torch.zeros(17, 2)}, ValueError, r"levels of pairs must be \[1 .. 16, 2\], got \[17, 2\]"),
    ({"codes": EXAMPLE["codes"][:, 1:]}, ValueError, r"codes must be \[67, 33\]"),
    ({"x": torch.zeros(2, 133)}, ValueError, r"codes must be \[67, 34\]"),
    ({"scale": EXAMPLE["scale"][:, 1:]}, ValueError, r"scale must be \[67, 3\]"),
)


@pytest.mark.parametrize(("change", "error", "text"), WRONG)
def test_what_does_not_fit_is_refused_with_the_value(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        PAIRS["pairs_matmul"].triton(**{**EXAMPLE, **change})


@COMPILED
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PAIRS)
def test_it_fits_every_target(name: str, target: str) -> None:
    op = operations()[name]
    wide = 64 if name == "pairs_grad" else 128  # a step of 64 x 64 has 1024 bytes of codes
    for m in (1, 16) if target == "sm_90" else (16,):
        for launch in recorded(op.triton, op.sized(m, 256, 2048, torch.bfloat16, "cpu").arguments)[1]:
            built = compile_launch(launch, target)
            assert built.spills == 0
            assert built.shared <= TARGETS[target].shared_limit
            if target.startswith("sm") and "codes_ptr" in launch.arguments:
                assert built.widths["load codes_ptr"] == wide
            if "BLOCK_M" in launch.arguments:
                assert built.tensor_core > 0
