"""The base classes: what is refused and how it is said, sizes from the stored tensors, rebuilding from them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from quant import FORMATS, METHODS, PARTS, QuantizedTensor, UnsupportedError
from quant.core import checked, from_config
from quant.formats import Affine, Codebook, Dense, Integers, Reshaped
from quant.methods.double import DynamicMap, Flat
from quant.methods.fp4 import MXFP4
from quant.methods.nf4 import NF
from quant.methods.none import Unquantized
from quant.methods.uniform import Uniform
from tests.quant.samples import quantize


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def by_hand() -> dict[str, QuantizedTensor]:
    """One or more of every general format, nested and not."""
    w = normal(6, 70)
    learned = Codebook((6, 70), torch.float16, torch.zeros(6, 27).byte(), normal(3, 5), None, None, 3, "tensor", 2)
    return {
        "dense": Unquantized("bfloat16").quantize(w),
        "integers": Integers.store(torch.arange(420).reshape(6, 70) % 32, 5),
        "affine": Uniform(3, 16).quantize(w),
        "affine, zeros packed": Uniform(4, 32, "integer").quantize(w.half()),
        "affine, scales quantized": Uniform(4, 32, "float", DynamicMap(16)).quantize(w.double()),
        "codebook": learned,
        "fixed codebook": NF(scale=Flat(Uniform(8, 16, "integer", DynamicMap(8)))).quantize(w),
        "reshaped": Flat(NF(scale=DynamicMap())).quantize(w),
        "e8m0": MXFP4().quantize(w),
    }


def formats_in(weight: QuantizedTensor) -> set[str]:
    inner = [v for v in weight.fields().values() if isinstance(v, QuantizedTensor)]
    return {weight.format}.union(*(formats_in(v) for v in inner))


def bits(t: Tensor) -> Tensor:
    return t.contiguous().reshape(-1).view(torch.uint8)


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    one, two = a.stored(), b.stored()
    return (
        a.config() == b.config()
        and one.keys() == two.keys()
        and all(one[name].dtype == two[name].dtype and torch.equal(bits(one[name]), bits(two[name])) for name in one)
        and torch.equal(a.dequantize(), b.dequantize())
    )


@pytest.mark.parametrize(
    ("weight", "error", "text"),
    [
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "weight must have a floating dtype, got torch.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), TypeError, "floating dtype, got torch.complex64"),
        (torch.ones(3), ValueError, r"weight must be 2-D \[n, k\], got shape \[3\]"),
        (torch.ones(2, 2, 2), ValueError, r"got shape \[2, 2, 2\]"),
        (torch.ones(0, 3), ValueError, r"weight is empty: shape \[0, 3\]"),
        (torch.ones(3, 0), ValueError, r"weight is empty: shape \[3, 0\]"),
        (torch.full((2, 3), 2.0**101), UnsupportedError, r"exceeds 2\*\*100; rescale the layer"),
        (torch.full((2, 3), -1e300, dtype=torch.float64), UnsupportedError, r"magnitude 1e\+300 exceeds"),
    ],
)
def test_bad_weights_are_refused_in_words(weight: Tensor, error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        Uniform().quantize(weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_first_non_finite_weight_is_named(value: float, dtype: torch.dtype):
    w = normal(4, 5).to(dtype)
    w[2, 3] = w[3, 1] = value
    with pytest.raises(ValueError, match=rf"weight is not finite: {value} at \[2, 3\] of shape \[4, 5\]"):
        NF().quantize(w)


def test_non_finite_eight_bit_floats_are_named():
    w = torch.ones(2, 3).to(torch.float8_e5m2)
    w.view(torch.uint8)[1, 1] = 0b0_11111_00  # infinity
    with pytest.raises(ValueError, match=r"inf at \[1, 1\]"):
        NF().quantize(w)


def test_bounds_of_magnitude():
    assert torch.equal(checked(torch.tensor([[2.0**100, 2.0**-100]])), torch.tensor([[2.0**100, 2.0**-100]]))
    tiny = torch.tensor([[1e-41, -1e-41, 2.0**-101, 1.0]])
    assert checked(tiny).tolist() == [[0, 0, 0, 1]]


def test_checked_is_a_contiguous_float32_copy():
    w = normal(6, 4).T
    got = checked(w)
    assert got.is_contiguous()
    assert got.data_ptr() != w.data_ptr()
    assert torch.equal(got, w)
    assert checked(w.bfloat16()).dtype == torch.float32
    same_memory = normal(2, 2)
    assert checked(same_memory).data_ptr() != same_memory.data_ptr()


def test_the_result_stands_for_the_dtype_of_the_weight():
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        weight = NF().quantize(normal(2, 64).to(dtype))
        assert weight.dtype == weight.dequantize().dtype == dtype
        assert weight.dequantize(torch.float16).dtype == torch.float16


def test_matmul_is_the_product_with_the_decoded_weight():
    weight, x = NF().quantize(normal(6, 70)), normal(2, 3, 70)
    assert torch.equal(weight.matmul(x), x @ weight.decode().T)
    assert weight.matmul(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", by_hand())
def test_config_as_json_and_stored_tensors_are_the_whole_object(name: str):
    weight = by_hand()[name]
    config = json.loads(json.dumps(weight.config(), allow_nan=False))
    assert same(from_config(config, weight.stored()), weight)
    assert same(weight.to("cpu"), weight)


def test_every_format_is_rebuilt_from_some_method_or_by_hand():
    found = set().union(*(formats_in(weight) for weight in by_hand().values()))
    for method in METHODS.values():
        weight = quantize(method, normal(32, 128))
        found |= formats_in(weight)
        assert same(from_config(json.loads(json.dumps(weight.config())), weight.stored()), weight)
    assert found == set(FORMATS) - {"foreign"}  # what other libraries store is never rebuilt: tests of peers


def test_with_stored_replaces_values():
    weight = NF().quantize(normal(2, 64))
    doubled = weight.with_stored(weight.stored() | {"scale": weight.scale * 2})
    assert torch.equal(doubled.decode(), weight.decode() * 2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c, t: c.update(format="no-such"), "unknown format 'no-such'; known: affine, "),
        (lambda c, t: c.pop("format"), "unknown format None"),
        (lambda c, t: c.update(colour=1), r"the configuration names \['bits', 'codes', 'colour'"),
        (lambda c, t: c.pop("bits"), "format 'fixed-codebook' has fields"),
        (lambda c, t: t.pop("codes"), "tensor 'codes' of format 'fixed-codebook' is missing"),
        (lambda c, t: t.pop("scale.inner.codes"), "tensor 'codes' of format 'fixed-codebook' is missing"),
        (lambda c, t: t.update(extra=torch.ones(1)), r"tensors \['extra'\] do not belong to format 'fixed-codebook'"),
        (lambda c, t: t.update({"scale.inner.extra": torch.ones(1)}), r"tensors \['extra'\] do not belong"),
        (lambda c, t: c.update(codes=5), "field 'codes' of format 'fixed-codebook' must be 'tensor', null or a table"),
        (lambda c, t: c.update(dtype="float33"), "unknown dtype 'float33'"),
        (lambda c, t: c.update(shape=[1, 2, 3]), r"shape of format 'fixed-codebook' must be \[n, k\]"),
        (lambda c, t: c.update(shape=[3, 128]), "codes must be uint8"),
        (lambda c, t: c.update(bits=3), "codes must be uint8"),
        (lambda c, t: c.update(group=32), "scale must have shape"),
        (lambda c, t: c.update(group=-1), "group must be a positive integer"),
        (lambda c, t: t.update(codes=t["codes"].float()), "codes must be uint8"),
        (lambda c, t: t.update(levels=t["levels"][:, :0]), "levels must be"),
        (lambda c, t: t.update(levels=t["levels"].int()), "levels must be floating"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_words(change: Any, text: str):
    weight = NF(scale=DynamicMap()).quantize(normal(2, 128))
    config, tensors = weight.config(), weight.stored()
    change(config, tensors)
    with pytest.raises(ValueError, match=text):
        from_config(config, tensors)


def test_formats_check_what_they_are_given():
    codes, ones = torch.zeros(2, 4).byte(), torch.ones(2, 1)
    f32 = torch.float32
    cases: list[tuple[Any, str]] = [
        (lambda: Dense((2, 4), f32, torch.ones(2, 3)), "dense values"),
        (lambda: Dense((2, 4), f32, torch.ones(2, 4).int()), "dense values"),
        (lambda: Integers((2, 4), f32, codes, 4), "codes must be uint8"),
        (lambda: Affine((2, 4), f32, codes, ones.int(), None, 8, "channel"), "scale must be floating"),
        (lambda: Affine((2, 4), f32, codes, ones, ones[:1], 8, "channel"), "zero must have shape"),
        (lambda: Codebook((2, 4), f32, codes, torch.ones(2, 9), None, None, 8, "tensor", 0), "levels must be"),
        (lambda: Codebook((2, 4), f32, codes, torch.ones(1, 9), None, ones, 8, "tensor", 0), "offset must hold one"),
        (lambda: Reshaped((2, 4), f32, Dense((3, 3), f32, torch.ones(3, 3))), "cannot see"),
    ]
    for build, text in cases:
        with pytest.raises(ValueError, match=text):
            build()


@pytest.mark.parametrize("rows", [0, 2])
def test_a_code_without_a_level_is_refused_not_read_from_the_next_table(rows: int):
    tables = 2 if rows else 1
    weight = Codebook(
        (4, 2), torch.float32, torch.full((4, 2), 5).byte(), normal(tables, 5), None, None, 8, "tensor", rows
    )
    with pytest.raises(ValueError, match="code 5 has no level: the table holds 5"):
        weight.decode()


def test_rows_of_a_codebook_use_their_own_table():
    levels = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    codes = torch.tensor([[0, 1], [1, 1], [0, 1]]).byte()
    weight = Codebook((3, 2), torch.float32, codes, levels, None, torch.tensor([0.5]), 8, "tensor", 2)
    assert weight.decode().tolist() == [[1.5, 2.5], [2.5, 2.5], [10.5, 20.5]]


@pytest.mark.parametrize("name", by_hand())
def test_parts_are_known_and_sum_to_the_stored_bytes(name: str):
    weight = by_hand()[name]
    assert set(weight.parts()) <= set(PARTS)
    assert sum(weight.parts().values()) == weight.nbytes
    assert weight.nbytes == sum(t.numel() * t.element_size() for t in weight.stored().values())


def test_where_the_bytes_of_nested_tensors_are_counted():
    w = normal(4, 128)
    assert by_hand()["affine, zeros packed"].parts() == {"codes": 6 * 35, "scales": 6 * 3 * 2, "zeros": 6 * 2}
    assert NF(scale=DynamicMap()).quantize(w).parts() == {
        "codes": 256,
        "scales": 8,  # one byte a group
        "second_level": 4,  # one block of scales
        "constants": 4 * (16 + 256 + 1),
    }
    assert Flat(NF()).quantize(w).parts() == NF().quantize(w).parts()
    assert MXFP4().quantize(w).parts() == {"codes": 256, "scales": 16, "constants": 64}
    assert Codebook(
        (4, 2), torch.float32, torch.zeros(4, 2).byte(), normal(1, 5), None, None, 8, "tensor", 0
    ).parts() == {"codes": 8, "levels": 20}


def test_bits_per_weight_leaves_constants_out():
    weight = NF().quantize(normal(4, 128))
    assert weight.nbytes == 256 + 32 + 64
    assert weight.bits_per_weight == 8 * (256 + 32) / 512
