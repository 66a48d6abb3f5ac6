"""Codes of 1 to 8 bits in a byte stream, most significant bit first.

A row of `k` codes of `bits` bits fills `ceil(k * bits / 8)` bytes: code 0 occupies the top bits of byte 0, the next
code follows without a gap, and a code may cross into the next byte (3, 5, 6 and 7 bits). The last byte of a row is
padded with zero bits. At 4 bits this is bitsandbytes' order (first value in the high nibble), at 1 bit it is
`numpy.packbits`, at 8 bits it is the identity.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

__all__ = ["pack", "pack_fitting", "packed_bytes", "unpack"]

# so many codes, one in each byte, seen as one word: the first is the lowest on a little-endian machine
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
if sys.byteorder != "little":
    raise ImportError("packed codes are read and written in words of a little-endian machine; this one is big-endian")


def packed_bytes(k: int, bits: int) -> int:
    """Bytes that a row of `k` codes of `bits` bits takes.

    >>> packed_bytes(8, 3), packed_bytes(5, 4), packed_bytes(3, 8)
    (3, 3, 3)
    """
    _check_bits(bits)
    return (k * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack `codes` [..., k] uint8, each below `2**bits`, into [..., packed_bytes(k, bits)] uint8.

    Raises ValueError when `bits` is not 1..8, TypeError when the codes are not uint8. A code that does not fit its
    `bits` raises ValueError: masking it would store another weight.

    >>> pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4)
    tensor([[18, 48]], dtype=torch.uint8)
    """
    _check_bits(bits)
    if codes.dtype != torch.uint8:
        raise TypeError(f"codes must be uint8, got {codes.dtype}")
    if bits < 8 and codes.numel() and int(codes.max()) >= 1 << bits:
        raise ValueError(f"code {int(codes.max())} does not fit in {bits} bits (largest: {(1 << bits) - 1})")
    return pack_fitting(codes, bits)


def pack_fitting(codes: Tensor, bits: int) -> Tensor:
    """`pack` of codes that are known to fit: nothing waits for their values, so it can be traced."""
    k = codes.shape[-1]
    if bits == 8 or k == 0:
        return codes.clone() if bits == 8 else codes.new_empty(*codes.shape[:-1], 0)
    count = _together(bits)
    cells = _cells(codes, count)
    word = _in_a_row(cells, count).view(WORDS[count]).view(cells.shape[:-1])
    width, lane = bits, 8
    while lane < 8 * count:  # of two neighbours the first is the upper one
        mask = _lanes(width, lane, count)
        word = ((word & mask) << width) | ((word >> lane) & mask)
        width, lane = 2 * width, 2 * lane
    if count < 8:
        return word.to(torch.uint8)
    stream = torch.stack([(word >> (8 * (bits - 1 - j))) & 255 for j in range(bits)], -1).to(torch.uint8)
    return stream.flatten(-2)[..., : packed_bytes(k, bits)].contiguous()


def unpack(packed: Tensor, bits: int, k: int) -> Tensor:
    """The inverse of `pack`: [..., packed_bytes(k, bits)] uint8 -> codes [..., k] uint8.

    Raises ValueError when the last dimension is not `packed_bytes(k, bits)`.
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed codes must be uint8, got {packed.dtype}")
    if packed.shape[-1] != packed_bytes(k, bits):
        raise ValueError(f"{k} codes of {bits} bits take {packed_bytes(k, bits)} bytes a row, got {packed.shape[-1]}")
    if bits == 8:
        return packed.clone()
    if k == 0:
        return packed.new_empty(*packed.shape[:-1], 0)
    count = _together(bits)
    if count < 8:
        word = packed.to(WORDS[count])
    else:
        cells = _cells(packed, bits)
        word = cells[..., 0].long()
        for j in range(1, bits):
            word = (word << 8) | cells[..., j]
    width, lane = bits * count, 8 * count
    while lane > 8:
        width, lane = width // 2, lane // 2
        mask = _lanes(width, lane, count)
        word = ((word >> width) & mask) | ((word & mask) << lane)
    codes = _in_a_row(word, 1).view(torch.uint8).view(*word.shape[:-1], word.shape[-1] * count)
    return codes[..., :k].contiguous()


def _together(bits: int) -> int:
    """How many codes fill whole bytes: those of one byte, or eight, which are `bits` bytes."""
    return 8 // bits if 8 % bits == 0 else 8


def _lanes(width: int, lane: int, count: int) -> int:
    """The lowest `width` bits of every second lane of `lane` bits, in a word of `count` bytes."""
    return sum(((1 << width) - 1) << at for at in range(0, 8 * count, 2 * lane))


def _cells(t: Tensor, size: int) -> Tensor:
    """[..., k] -> [..., ceil(k / size), size], filled up with zeros."""
    short = -t.shape[-1] % size
    padded = torch.nn.functional.pad(t, (0, short)) if short else t
    return padded.reshape(*t.shape[:-1], padded.shape[-1] // size, size)


def _in_a_row(t: Tensor, step: int) -> Tensor:
    """[...] -> [numel], one after another, from a multiple of `step` places on: it can be seen as words."""
    flat = t.reshape(-1)
    if torch.compiler.is_compiling() or flat.stride(0) != 1 or flat.storage_offset() % step:
        return flat.clone(memory_format=torch.contiguous_format)
    return flat


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1..8, got {bits}")
