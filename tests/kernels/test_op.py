"""What an operation promises, where its kernels run, and what its launchers refuse."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from kernels.affine import affine_dequantize, affine_matmul
from kernels.codebook import codebook_dequantize, codebook_matmul
from kernels.nested import NestedScale
from kernels.op import Example, Op, Tolerance, available, interpreted, operations, relative_error
from kernels.tuning import recorded
from quant.formats import Affine, Codebook, Reshaped
from tests.kernels.conftest import INTERPRETED


def arguments_of(name: str, label: str = "w4-g64-5x") -> dict[str, Any]:
    op = INTERPRETED[name]
    return dict(next(e.arguments for e in op.examples(torch.float32, "cpu") if e.label.startswith(label)))


def test_operations_are_found_by_their_modules() -> None:
    assert {"affine_dequantize", "affine_matmul", "codebook_dequantize", "codebook_matmul"} <= set(operations())
    assert {name: op.name for name, op in operations().items()} == {name: name for name in operations()}


@pytest.mark.parametrize("name", INTERPRETED)
def test_examples_are_distinct_and_drawn_from_a_seed(name: str) -> None:
    op = INTERPRETED[name]
    first, second = (list(op.examples(torch.float32, "cpu")) for _ in range(2))
    labels = [e.label for e in first]
    assert len(set(labels)) == len(labels) >= 14
    assert {e.arguments["bits"] for e in first} == set(range(1, 9))
    assert {"channel", "tensor"} <= {e.arguments["group"] for e in first}
    assert all(torch.equal(a.arguments["codes"], b.arguments["codes"]) for a, b in zip(first, second, strict=True))


def _stored(scale: Any) -> Any:
    """Scales as `quant` stores them: nested ones are a codebook of one row."""
    if not isinstance(scale, NestedScale):
        return scale
    codes, levels = scale.codes.reshape(1, -1), scale.levels[None]
    row = Codebook((1, codes.numel()), torch.float32, codes, levels, scale.scale[None], scale.offset, 8, scale.group, 0)
    return Reshaped(tuple(scale.codes.shape), torch.float32, row)


@pytest.mark.parametrize("example", list(INTERPRETED["codebook_dequantize"].examples(torch.float32, "cpu")), ids=str)
def test_a_codebook_is_what_quant_stores(example: Any) -> None:
    a = example.arguments
    group = "tensor" if a["scale"] is None else a["group"]
    stored = Codebook(
        a["shape"], a["dtype"], a["codes"], a["levels"], _stored(a["scale"]), None, a["bits"], group, a["rows"]
    )
    assert torch.equal(stored.decode(), operations()["codebook_dequantize"].reference(**a))


@pytest.mark.parametrize("example", list(INTERPRETED["affine_dequantize"].examples(torch.float32, "cpu")), ids=str)
def test_an_affine_weight_is_what_quant_stores(example: Any) -> None:
    a = example.arguments
    stored = Affine(a["shape"], a["dtype"], a["codes"], _stored(a["scale"]), a["zero"], a["bits"], a["group"])
    assert torch.equal(stored.decode(), operations()["affine_dequantize"].reference(**a))


def test_kernels_are_available_on_a_gpu_or_under_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    assert not available(x)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    assert available(x)


def test_importing_the_frame_does_not_import_triton() -> None:
    code = "import sys, kernels.op, kernels.packing; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_interpreted_copy_leaves_the_setting_and_the_first_copy_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lone_kernel.py").write_text("import triton\nSEEN = triton.knobs.runtime.interpret\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    assert interpreted("lone_kernel").SEEN is True
    assert triton.knobs.runtime.interpret is False
    assert "lone_kernel" not in sys.modules
    copy = interpreted("kernels.codebook")
    assert interpreted("kernels.small").SMALL.interpreted
    assert copy.multiply is interpreted("kernels.launchers").multiply
    assert copy is interpreted("kernels.codebook")
    assert copy is not sys.modules["kernels.codebook"]
    with pytest.raises(ValueError, match=r"no module 'kernels\.absent'"):
        interpreted("kernels.absent")


@pytest.mark.parametrize("name", operations())
def test_tuning_keys_are_arguments(name: str) -> None:
    op = operations()[name]
    for launch in recorded(op.triton, op.sized(4, 64, 256, torch.float16, "cpu").arguments)[1]:
        assert set(launch.kernel.key) <= set(launch.arguments)
        assert len({str(c) for c in launch.kernel.configs}) == len(launch.kernel.configs)


@pytest.mark.skipif(bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1: nothing is compiled")
def test_a_compiled_kernel_refuses_cpu_tensors_and_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        codebook_matmul(**arguments_of("codebook_matmul"))


def test_tensors_on_two_devices_are_refused() -> None:
    arguments = arguments_of("affine_matmul")
    arguments["scale"] = arguments["scale"].to("meta")
    with pytest.raises(ValueError, match=r"several devices.*scale_ptr.*meta"):
        INTERPRETED["affine_matmul"].triton(**arguments)


def nested(size: int, group: int = 256) -> NestedScale:
    blocks = torch.ones(-(-size // group))
    return NestedScale(torch.zeros(size, dtype=torch.uint8), torch.ones(256), blocks, None, group)


ODD = torch.zeros(67, 65, dtype=torch.uint8)
REFUSED: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    (codebook_matmul, {"codes": ODD}, ValueError, r"codes must be \[67, 66\] for \[67, 131\]"),
    (codebook_matmul, {"codes": ODD.int()}, TypeError, "codes must be uint8"),
    (codebook_matmul, {"codes": torch.zeros(66, 67, dtype=torch.uint8).T}, ValueError, "contiguous"),
    (codebook_matmul, {"levels": torch.zeros(1, 17)}, ValueError, r"levels must be \[1, 1 .. 16\], got \[1, 17\]"),
    (codebook_matmul, {"rows": 8}, ValueError, r"levels must be \[9, "),
    (codebook_matmul, {"rows": -1}, ValueError, "rows must be 0"),
    (codebook_matmul, {"levels": torch.zeros(1, 16, dtype=torch.int8)}, TypeError, "levels must be float32"),
    (codebook_matmul, {"scale": torch.ones(67, 2)}, ValueError, r"scale must be \[67, 3\].*groups of 64"),
    (codebook_matmul, {"group": 0}, ValueError, "group must be a positive integer"),
    (codebook_matmul, {"group": "row"}, ValueError, "group must be a positive integer"),
    (codebook_matmul, {"bits": 9}, ValueError, "bits must be 1..8"),
    (codebook_matmul, {"x": torch.zeros(5, 131, dtype=torch.int32)}, TypeError, "x must be float32"),
    (codebook_matmul, {"x": torch.zeros(5, 0)}, ValueError, "k > 0"),
    (codebook_dequantize, {"dtype": torch.float64}, TypeError, "dtype must be float32"),
    (codebook_dequantize, {"shape": (67, 0)}, ValueError, "empty"),
    (affine_matmul, {"x": torch.zeros(5, 140)}, ValueError, r"codes must be \[67, 70\]"),
    (affine_matmul, {"zero": torch.ones(67, 1)}, ValueError, r"zero must be \[67, 3\]"),
    (affine_matmul, {"zero": torch.ones(67, 3).int()}, TypeError, "zero must be float32"),
    (affine_dequantize, {"scale": nested(200)}, ValueError, r"nested scales must be \[67, 3\] codes for \[67, 131\]"),
    (affine_dequantize, {"scale": torch.ones(67, 3).double()}, TypeError, "scale must be float32"),
]


@pytest.mark.parametrize(("function", "change", "error", "message"), REFUSED)
def test_unsuitable_arguments_are_named(
    function: Callable[..., Any], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(**{**arguments_of(function.__name__), **change})


def test_an_interpreted_launch_leaves_triton_as_it_was() -> None:
    spaces = (tl, tl.core, tl.standard, tl.math, tl.core.tensor)
    before = [dict(vars(space)) for space in spaces]
    INTERPRETED["affine_matmul"].triton(**arguments_of("affine_matmul", "w4-g64-1x67x131-zero"))  # it adds up
    for space, names in zip(spaces, before, strict=True):
        assert {name for name in names if vars(space)[name] is not names[name]} == set()


def test_each_of_several_outputs_is_held_to_its_own_tolerance() -> None:
    want = torch.arange(1.0, 5.0), torch.tensor([3, 4], dtype=torch.uint8)
    bounds = {torch.float32: 1e-3, torch.uint8: 0.0}
    op = Op(
        "pair", "", "", lambda: want, lambda: want, lambda *a: (), lambda *a: Example("", {}), Tolerance(bounds, "w")
    )
    assert op.disagreement((want[0] * 1.0005, want[1]), {}) is None
    assert "pair[0]: relative error" in str(op.disagreement((want[0] * 1.002, want[1]), {}))
    assert "pair[1]: relative error" in str(op.disagreement((want[0], want[1].flip(0)), {}))
    assert "pair: 1 outputs instead of 2" in str(op.disagreement(want[:1], {}))
    assert "pair[1]: shape [1] instead of [2]" in str(op.disagreement((want[0], want[1][:1]), {}))


def test_relative_error_is_of_the_norm() -> None:
    want = torch.tensor([3.0, 4.0])
    assert relative_error(2 * want, want) == 1  # a cosine would call this equal
    assert relative_error(want, want) == 0
    assert relative_error(torch.ones(2), torch.zeros(2)) == pytest.approx(2**0.5)
    assert math.isnan(relative_error(torch.tensor([float("nan"), 4.0]), want))


def test_nested_scales_are_checked_when_they_are_made() -> None:
    fine = nested(201)
    for change, message in (
        ({"codes": fine.codes.int()}, "must be uint8"),
        ({"codes": torch.zeros(4, 4, dtype=torch.uint8).T[1:]}, "contiguous"),
        ({"levels": torch.ones(255)}, "256 levels, got 255"),
        ({"group": 100}, "201 codes in groups of 100 need 3 scales, got 1"),
        ({"group": 0}, "group of nested scales must be positive"),
        ({"offset": torch.ones(2)}, "one value"),
        ({"scale": torch.ones(1).double()}, "scale of nested scales must be float32"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            dataclasses.replace(fine, **change)


def test_nested_scales_take_the_bytes_that_they_store() -> None:
    assert nested(1024, 256).nbytes == 1024 + 256 * 4 + 4 * 4
