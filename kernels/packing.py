"""Codes of 1 to 8 bits in a byte stream, most significant bit first.

A row of `k` codes of `bits` bits fills `ceil(k * bits / 8)` bytes: code 0 occupies the top bits of byte 0, the next
code follows without a gap, and a code may cross into the next byte (3, 5, 6 and 7 bits). The last byte of a row is
padded with zero bits. At 4 bits this is bitsandbytes' order (first value in the high nibble), at 1 bit it is
`numpy.packbits`, at 8 bits it is the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pack", "pack_fitting", "packed_bytes", "unpack"]


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
    if 8 % bits == 0:
        per_byte = 8 // bits
        cells = _cells(codes, per_byte)
        out = cells[..., 0] << (8 - bits)
        for i in range(1, per_byte):
            out |= cells[..., i] << (8 - bits * (i + 1))
        return out.contiguous()
    cells = _cells(codes, 8)  # eight codes are exactly `bits` bytes
    word = cells[..., 0].long() << (7 * bits)
    for i in range(1, 8):
        word |= cells[..., i].long() << (bits * (7 - i))
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
    if 8 % bits == 0:
        shifts = range(8 - bits, -1, -bits)
        codes = torch.stack([(packed >> s) & ((1 << bits) - 1) for s in shifts], -1)
        return codes.flatten(-2)[..., :k].contiguous()
    cells = _cells(packed, bits)
    word = cells[..., 0].long() << (8 * (bits - 1))
    for j in range(1, bits):
        word |= cells[..., j].long() << (8 * (bits - 1 - j))
    codes = torch.stack([(word >> (bits * (7 - i))) & ((1 << bits) - 1) for i in range(8)], -1)
    return codes.flatten(-2)[..., :k].to(torch.uint8).contiguous()


def _cells(t: Tensor, size: int) -> Tensor:
    """[..., k] -> [..., ceil(k / size), size], filled up with zeros."""
    short = -t.shape[-1] % size
    padded = torch.nn.functional.pad(t, (0, short)) if short else t
    return padded.reshape(*t.shape[:-1], padded.shape[-1] // size, size)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1..8, got {bits}")
