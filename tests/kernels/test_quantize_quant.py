"""The quantizing kernels give the very bytes that the methods of `quant` store."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.op import interpreted
from kernels.packing import unpack
from quant.formats import E8M0, Affine, FixedCodebook, Integers, Reshaped
from quant.methods.double import DynamicMap, dynamic_levels
from quant.methods.fp4 import E2M1_LEVELS, MXFP4
from quant.methods.nf4 import NF
from quant.methods.uniform import Uniform

AFFINE, CODEBOOK, MXFP4_KERNEL = (
    next(op.triton for op in interpreted("kernels.quantize").OPERATIONS if op.name == name)
    for name in ("affine_quantize", "codebook_quantize", "mxfp4_quantize")
)
NESTED = interpreted("kernels.quantize_nested").OPERATIONS[0].triton
SHAPES = ((64, 512), (17, 200), (5, 63), (3, 1))
GROUPS: tuple[int | str, ...] = (64, 48, 17, "channel", "tensor")


def weight_of(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    draw = torch.Generator().manual_seed(shape[0])
    weight = torch.randn(*shape, generator=draw) * torch.randn(shape[0], 1, generator=draw).exp() / 32
    weight[-1, -(shape[1] // 2 + 1) :] = 0
    return weight.to(dtype)


def as_tensor(side: Any) -> Tensor:
    return side.codes if isinstance(side, Integers) else side


@pytest.mark.parametrize("zero", [None, "integer", "float"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_uniform(bits: int, zero: str | None) -> None:
    for shape in SHAPES:
        for group in GROUPS:
            weight = weight_of(shape)
            stored = Uniform(bits, group, zero=zero, scale="float32").quantize(weight)
            assert isinstance(stored, Affine)
            want = [stored.codes, stored.scale, *([] if stored.zero is None else [as_tensor(stored.zero)])]
            got = AFFINE(weight, bits=bits, group=group, zero=zero, stored=torch.float32)
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), (shape, group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", ["float16", "bfloat16"])
def test_uniform_with_narrow_scales(scale: str, dtype: torch.dtype) -> None:
    weight = weight_of((64, 512), dtype)
    weight[-1] = weight[0]  # scales that suit every dtype, so that none is stored wider than it was asked for
    for zero in (None, "integer", "float"):
        stored = Uniform(4, 64, zero=zero, scale=scale).quantize(weight)
        assert isinstance(stored, Affine)
        assert isinstance(stored.scale, Tensor)
        want = [stored.codes, stored.scale, *([] if stored.zero is None else [as_tensor(stored.zero)])]
        got = AFFINE(weight, bits=4, group=64, zero=zero, stored=getattr(torch, scale))
        assert stored.scale.dtype == getattr(torch, scale)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("bits", range(2, 9))
def test_normal_float(bits: int) -> None:
    method = NF(bits=bits)
    for shape in SHAPES:
        for group in GROUPS:
            stored = NF(bits=bits, group=group).quantize(weight_of(shape))
            assert isinstance(stored, FixedCodebook)
            got = CODEBOOK(weight_of(shape), method.levels, bits=bits, group=group, stored=torch.float32)
            assert torch.equal(got[0], stored.codes), (shape, group)
            assert torch.equal(got[1], stored.scale), (shape, group)


@pytest.mark.parametrize("shape", [(64, 512), (17, 200), (300, 64)])
def test_double_quantization(shape: tuple[int, int]) -> None:
    weight = weight_of(shape)
    stored = NF(scale=DynamicMap()).quantize(weight)
    assert isinstance(stored, FixedCodebook)
    assert isinstance(stored.scale, Reshaped)
    nested = stored.scale.inner
    assert isinstance(nested, FixedCodebook)
    codes, largest = CODEBOOK(weight, NF().levels, bits=4, group=64, stored=torch.float32)
    scale_codes, blocks = NESTED(largest, largest.flatten().mean()[None], dynamic_levels(), block=256)
    assert torch.equal(codes, stored.codes)
    assert torch.equal(scale_codes.flatten(), nested.codes.flatten())
    assert torch.equal(blocks, nested.scale.flatten() if isinstance(nested.scale, Tensor) else blocks[:0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_mxfp4(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        for group in (32, *GROUPS):
            weight = weight_of(shape, dtype)
            stored = MXFP4(group).quantize(weight)  # type: ignore[arg-type]
            assert isinstance(stored, FixedCodebook)
            assert isinstance(stored.scale, E8M0)
            codes, scale = MXFP4_KERNEL(weight, group=group)
            assert torch.equal(codes, stored.codes), (shape, group)
            assert torch.equal(scale, stored.scale.codes), (shape, group)


def test_mxfp4_rounds_halves_to_the_even_magnitude_and_saturates() -> None:
    levels = torch.tensor(E2M1_LEVELS[:8])
    ties = (levels[1:] + levels[:-1]) / 2
    weight = torch.cat([torch.tensor([7.9, 6.1]), levels, ties, -levels, -ties])[None]
    codes, scale = MXFP4_KERNEL(weight, group="tensor")
    assert scale.item() == 127
    even = [0, 2, 2, 4, 4, 6, 6]
    magnitudes = [7, 7, *range(8), *even]
    want = [*magnitudes, *(m + 8 * (m > 0) for m in magnitudes[2:])]
    assert unpack(codes, 4, weight.shape[1])[0].tolist() == want
