"""Quantizers, interpreted: bit by bit what their references say, and what rounding, ties and zeros are to be."""

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
from kernels.op import Op, interpreted
from kernels.packing import unpack
from tests.kernels.conftest import run_guarded

MODULES = ("kernels.quantize", "kernels.quantize_nested")
OPERATIONS: dict[str, Op] = {op.name: op for name in MODULES for op in interpreted(name).OPERATIONS}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EXAMPLES = [(name, e.label) for name, op in OPERATIONS.items() for e in op.examples(torch.float32, "cpu")]


def affine(weight: Tensor, **settings: Any) -> tuple[Tensor, ...]:
    given = {"bits": 4, "group": 64, "zero": None, "stored": torch.float32, **settings}
    out: tuple[Tensor, ...] = OPERATIONS["affine_quantize"].triton(weight, **given)
    return out


def codebook(weight: Tensor, levels: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    given = {"bits": 4, "group": 64, "stored": torch.float32, **settings}
    out: tuple[Tensor, Tensor] = OPERATIONS["codebook_quantize"].triton(weight, levels, **given)
    return out


def equal(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("name", "label"), EXAMPLES)
def test_the_kernel_is_its_reference_bit_by_bit(name: str, label: str) -> None:
    op = OPERATIONS[name]
    for dtype in DTYPES:
        arguments = next(e.arguments for e in op.examples(dtype, "cpu") if e.label == label)
        assert equal(run_guarded(op, arguments), op.reference(**arguments)), dtype


@pytest.mark.parametrize("bits", range(2, 9))
def test_halves_go_to_the_even_code(bits: int) -> None:
    top = (1 << (bits - 1)) - 1
    weight = torch.arange(-2 * top, 2 * top + 1)[None] / 2  # a scale of one, and every other value a tie
    codes, scale = affine(weight, bits=bits, group="channel")
    assert scale.item() == 1
    want = [max(round(v), -top) + top + 1 for v in weight[0].tolist()]  # Python rounds halves to even as well
    assert unpack(codes, bits, weight.shape[1])[0].tolist() == want


@pytest.mark.parametrize("zero", ["integer", "float"])
def test_a_grid_with_a_zero_point_reaches_both_extremes(zero: str) -> None:
    weight = torch.linspace(-1, 14, 61)[None]  # steps of a quarter over a range of 15: a scale of one, a zero of one
    codes, scale, zeros = affine(weight, group="channel", zero=zero)
    assert scale.item() == 1
    assert (unpack(zeros, 4, 1) if zero == "integer" else zeros).item() == 1
    late = 1 if zero == "integer" else 0  # a whole zero is added after rounding, so ties are those of the weight
    assert unpack(codes, 4, 61)[0].tolist() == [round(v + 1 - late) + late for v in weight[0].tolist()]


@pytest.mark.parametrize("bits", [2, 4, 5])
def test_a_weight_on_a_threshold_takes_the_lower_level_and_just_above_it_the_upper(bits: int) -> None:
    levels = torch.linspace(-1, 1, (1 << bits) - 1).sign() * torch.linspace(-1, 1, (1 << bits) - 1) ** 2
    ties = (levels[1:] + levels[:-1]) / 2
    above = torch.nextafter(ties, torch.tensor(2.0))
    weight = torch.cat([torch.ones(1), ties, above])[None]  # a largest magnitude of one
    codes, scale = codebook(weight, levels, bits=bits, group="channel")
    count = len(ties)
    assert scale.item() == 1
    assert unpack(codes, bits, weight.shape[1])[0].tolist() == [count, *range(count), *range(1, count + 1)]


@pytest.mark.parametrize("group", [16, "channel", "tensor", 17])
def test_groups_of_zeros_have_scale_zero_and_the_code_of_zero(group: int | str) -> None:
    weight = torch.zeros(3, 40)
    codes, scale = affine(weight, group=group)
    assert not scale.any()
    assert (unpack(codes, 4, 40) == 8).all()
    codes, scale, zeros = affine(weight, group=group, zero="integer")
    assert not scale.any()
    assert not codes.any()
    assert not zeros.any()
    codes, scale = codebook(weight, torch.linspace(-1, 1, 15), group=group)
    assert not scale.any()
    assert (unpack(codes, 4, 40) == 7).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 48, 17])
def test_a_short_last_group_is_a_group_of_its_own(group: int, bits: int) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 100, generator=draw)
    codes, scale = affine(weight, bits=bits, group=group)
    whole = unpack(codes, bits, 100)
    for g, start in enumerate(range(0, 100, group)):
        alone, one = affine(weight[:, start : start + group], bits=bits, group="channel")
        assert torch.equal(unpack(alone, bits, min(group, 100 - start)), whole[:, start : start + group])
        assert torch.equal(one, scale[:, g : g + 1])


def test_codes_follow_from_the_scale_as_it_is_stored() -> None:
    weight = torch.tensor([[7.0, 3.4999]]) * 1.0003  # in float16 the scale is one, in float32 it is not
    wide, _ = affine(weight, group="channel")
    narrow, scale = affine(weight, group="channel", stored=torch.float16)
    assert scale.item() == 1
    assert unpack(wide, 4, 2)[0].tolist() == [15, 11]
    assert unpack(narrow, 4, 2)[0].tolist() == [15, 12]


def test_tiny_and_huge_magnitudes() -> None:
    weight = torch.tensor([[2.0**-101, -(2.0**-100), 0.0, 2.0**-100], [2.0**100, -(2.0**100), 2.0**-149, 2.0**98]])
    codes, scale = affine(weight, group="channel")
    assert unpack(codes, 4, 4).tolist() == [[8, 1, 8, 15], [15, 1, 8, 10]]
    assert torch.equal(scale[:, 0], torch.tensor([2.0**-100, 2.0**100]) / 7)


@pytest.mark.parametrize("name", ["affine_quantize", "codebook_quantize"])
def test_the_layout_of_the_weight_in_memory_does_not_matter(name: str) -> None:
    op = OPERATIONS[name]
    arguments = dict(next(iter(op.examples(torch.float32, "cpu"))).arguments)
    want = op.triton(**arguments)
    weight = arguments["weight"]
    before = weight.clone()
    assert equal(op.triton(**{**arguments, "weight": weight.T.contiguous().T}), want)
    assert torch.equal(weight, before)


def test_nested_scales_never_decode_below_zero() -> None:
    scale = torch.full((1, 256), 1.0)
    scale[0, 0] = 2.0**-20  # nearest to the mean less 1.0039 times the block's maximum would be negative
    levels = torch.linspace(-1, 1, 255)
    offset = scale.mean()[None]
    codes, largest = OPERATIONS["nested_quantize"].triton(scale, offset, levels, block=256)
    decoded = levels[codes.int()] * largest + offset
    assert codes.shape == scale.shape
    assert decoded.min() >= 0
    assert (decoded - scale).abs().max() <= 2 * largest.item() / 254


WEIGHT = torch.ones(2, 8)
WRONG = (
    ("affine_quantize", {"weight": WEIGHT.double()}, TypeError, "weight must be float32, float16 or bfloat16"),
    ("affine_quantize", {"weight": WEIGHT[:, :0]}, ValueError, r"weight must be \[n, k\]"),
    ("affine_quantize", {"weight": WEIGHT[0]}, ValueError, r"weight must be \[n, k\]"),
    ("affine_quantize", {"bits": 1}, ValueError, r"bits must be 2\.\.8"),
    ("affine_quantize", {"bits": 9}, ValueError, r"bits must be 1\.\.8, got 9"),
    ("affine_quantize", {"zero": "half"}, ValueError, "zero one of"),
    ("affine_quantize", {"group": 0}, ValueError, "group must be a positive integer"),
    ("affine_quantize", {"stored": torch.int8}, TypeError, "stored must be float32"),
    ("codebook_quantize", {"levels": torch.ones(17)}, ValueError, r"levels must be \[1 \.\. 16\] for 4 bits"),
    ("codebook_quantize", {"levels": torch.ones(4).double()}, TypeError, "levels must be float32"),
    ("nested_quantize", {"block": 4097}, ValueError, r"block must be 1\.\.4096"),
    ("nested_quantize", {"offset": torch.ones(2)}, ValueError, r"offset \[1\]"),
    ("nested_quantize", {"scale": torch.ones(1, 3).half()}, TypeError, "scale and offset must be float32"),
    ("nested_quantize", {"levels": torch.ones(257)}, ValueError, r"levels must be \[1 \.\. 256\]"),
)


@pytest.mark.parametrize(("name", "change", "error", "text"), WRONG)
def test_what_does_not_fit_is_refused_with_the_value(
    name: str, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    op = OPERATIONS[name]
    arguments = next(e.arguments for e in op.examples(torch.float32, "cpu") if "w4" in e.label or "-b" in e.label)
    with pytest.raises(error, match=text):
        op.triton(**{**arguments, **change})


# One-line defects, by module; each must be seen on some example.
DEFECTS = {
    "a threshold is not the middle": ("quantize_tile", ") * 0.5", ") * 0.25"),
    "the zero has the wrong sign": ("quantize_tile", "zero = (low * -1.0) * inverse", "zero = low * inverse"),
    "a stored scale is cut off": ("quantize_tile", "(bits + 0x7FFF + ((bits >> 16) & 1))", "bits"),
    "second nibble first": ("quantize_tile", "shift = 8 - BITS - BITS * tl.arange", "shift = BITS * tl.arange"),
    "bytes of a word in reverse": ("quantize_tile", "word >> (8 * (BITS - 1 - j))", "word >> (8 * j)"),
    "the next group counts": ("quantize_kernels", "(lane < GROUP) & (col < k)\n", "(col < k)\n"),
    "the least is forgotten": ("quantize_kernels", "most = tl.maximum(least * -1.0, most)", "most = most * 1.0"),
    "the scale of another group": ("quantize_kernels", "side += col // GROUP", "side += col // GROUP * 0"),
    "the mean is not taken off": ("quantize_nested", "other=0.0) - offset", "other=0.0)"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_comparison_sees_a_planted_defect(defect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, right, wrong = DEFECTS[defect]
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    seen = []
    for name in ("quantize_tile", "quantize_kernels", "quantize", "quantize_nested"):
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
        not equal(op.triton(**e.arguments), op.reference(**e.arguments))
        for op in seen
        for e in op.examples(torch.float32, "cpu")
    )
