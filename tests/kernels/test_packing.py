"""Codes in a byte stream, most significant bit first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.packing import pack, pack_fitting, packed_bytes, unpack


@st.composite
def codes_and_bits(draw: st.DrawFn) -> tuple[Tensor, int]:
    bits = draw(st.integers(1, 8))
    n, k = draw(st.integers(1, 3)), draw(st.integers(0, 40))
    values = draw(st.lists(st.integers(0, 2**bits - 1), min_size=n * k, max_size=n * k))
    return torch.tensor(values, dtype=torch.uint8).view(n, k), bits


@given(codes_and_bits())
@settings(max_examples=200, deadline=None)
def test_packing_is_the_bit_string_of_the_codes_and_unpacking_undoes_it(case: tuple[Tensor, int]) -> None:
    codes, bits = case
    k = codes.shape[1]
    packed = pack(codes, bits)
    for row, stored in zip(codes.tolist(), packed.tolist(), strict=True):
        string = "".join(format(code, f"0{bits}b") for code in row)
        string += "0" * (-len(string) % 8)
        assert stored == [int(string[i : i + 8], 2) for i in range(0, len(string), 8)]
    assert packed.shape[1] == packed_bytes(k, bits) == -(-k * bits // 8)
    assert torch.equal(unpack(packed, bits, k), codes)


def u8(*values: int) -> Tensor:
    return torch.tensor([values], dtype=torch.uint8)


def test_four_bits_put_the_first_code_in_the_high_nibble() -> None:
    assert torch.equal(pack(u8(1, 2, 3), 4), u8(0x12, 0x30))


def test_three_bit_codes_cross_bytes() -> None:
    # 111 000 101 | 110 -> 11100010 1110 0000
    assert torch.equal(pack(u8(7, 0, 5, 6), 3), u8(0xE2, 0xE0))


def test_one_bit_is_numpy_packbits() -> None:
    bits = torch.randint(2, (5, 19), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(pack(bits, 1).numpy(), np.packbits(bits.numpy(), axis=-1))


def test_leading_dimensions_are_kept_and_the_input_is_untouched() -> None:
    codes = torch.randint(8, (2, 3, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before = codes.clone()
    packed = pack(codes, 3)
    assert packed.shape == (2, 3, 5)
    assert torch.equal(unpack(packed, 3, 11), before)
    assert torch.equal(codes, before)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_may_lie_anywhere_in_memory(bits: int) -> None:
    some = torch.randint(1 << bits, (7, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    deep = torch.stack([some, some])[:, :, None, :13].to(memory_format=torch.channels_last)
    for codes in (some.flatten()[3:43], some[1:, 5:], some.T, some[:, ::3], some[:1].T, some[:0], deep):
        packed = pack(codes, bits)
        assert torch.equal(packed, pack(codes.clone(memory_format=torch.contiguous_format), bits))
        assert torch.equal(unpack(packed, bits, codes.shape[-1]), codes)
        spread = torch.stack([packed, packed], -1)[..., 0]
        assert torch.equal(unpack(spread, bits, codes.shape[-1]), codes)


@pytest.mark.parametrize("bits", range(1, 8))
def test_codes_that_fit_are_packed_in_one_graph(bits: int) -> None:
    some = torch.randint(1 << bits, (3, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    traced = torch.compile(lambda codes: unpack(pack_fitting(codes, bits), bits, 37), backend="eager", fullgraph=True)
    for codes in (some[:, :37], some[:, 3:]):
        assert torch.equal(traced(codes), codes)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_outside_1_to_8_are_an_error(bits: int) -> None:
    with pytest.raises(ValueError, match=rf"bits must be 1..8, got {bits}"):
        pack(u8(0), bits)


def test_a_code_that_does_not_fit_is_an_error_not_a_mask() -> None:
    with pytest.raises(ValueError, match="code 8 does not fit in 3 bits"):
        pack(u8(7, 8), 3)


def test_codes_that_are_not_bytes_are_an_error() -> None:
    with pytest.raises(TypeError, match=r"torch\.int64"):
        pack(torch.zeros(1, 4, dtype=torch.int64), 4)
    with pytest.raises(TypeError, match=r"torch\.int32"):
        unpack(torch.zeros(1, 4, dtype=torch.int32), 4, 8)


def test_a_row_of_the_wrong_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="9 codes of 3 bits take 4 bytes a row, got 3"):
        unpack(u8(1, 2, 3), 3, 9)
