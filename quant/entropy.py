"""How small the codes become when their frequencies are used: their order-0 entropy, and what a real coder takes.

The coders are `quant.huffman` and `quant.ans`; `quant.formats.coded` stores what they write.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kernels.packing import unpack
from quant import huffman
from quant.core import QuantizedTensor

__all__ = ["entropy", "entropy_bits", "huffman_bits", "huffman_bytes"]


def entropy(symbols: Tensor) -> float:
    """Order-0 entropy of `symbols` uint8, in bits a symbol; 0 of no symbols."""
    counts = torch.bincount(symbols.flatten().int(), minlength=1).double()
    p = counts[counts > 0] / max(1, symbols.numel())
    return float(-(p * p.log2()).sum()) + 0.0


def entropy_bits(quantized: QuantizedTensor) -> float:
    """Bits a weight with codes and masks at their entropy and all else as stored, per-tensor constants left out."""
    return _bits(quantized, lambda codes, _: entropy(codes) * codes.numel()) / quantized.numel


def huffman_bits(quantized: QuantizedTensor) -> float:
    """As `entropy_bits`, with the bytes that the Huffman coder really writes; masks are coded eight bits at a time."""
    return _bits(quantized, lambda codes, bits: 8.0 * huffman_bytes(codes, bits)) / quantized.numel


def huffman_bytes(codes: Tensor, bits: int) -> int:
    """Bytes of `codes` uint8, each below 2**bits, encoded: stream, chunk starts, table. One-bit codes go by bytes."""
    symbols = codes.cpu().numpy()
    coded = huffman.encode(np.packbits(symbols), 8) if bits == 1 else huffman.encode(symbols, bits)
    return coded.nbytes


def _bits(quantized: QuantizedTensor, size: Callable[[Tensor, int], float]) -> float:
    """Total bits, where `size(codes, bits)` says what codes and masks take."""
    if hasattr(quantized, "symbols"):
        return size(quantized.symbols(), quantized.bits)  # type: ignore[attr-defined]
    total = 0.0
    for name, value in quantized.fields().items():
        part = quantized.stored_parts[name]
        if part == "constants":
            continue
        if isinstance(value, QuantizedTensor):
            stored = 8 * (value.nbytes - value.parts().get("constants", 0))
            total += _bits(value, size) if part in ("inherit", "mask") else stored
        elif part in ("codes", "mask"):
            total += size(*_symbols(quantized, name, value))
        else:
            total += 8 * value.numel() * value.element_size()
    return total


def _symbols(quantized: QuantizedTensor, name: str, packed: Tensor) -> tuple[Tensor, int]:
    """The symbols packed in a field and their bits: those of `bits` or `index_bits`, a mask's, or plain bytes."""
    if name == "codes" and hasattr(quantized, "bits"):
        return unpack(packed, quantized.bits, quantized.shape[1]), quantized.bits
    if name == "indices" and hasattr(quantized, "positions"):
        return quantized.positions().flatten(), quantized.index_bits  # type: ignore[attr-defined]
    if name == "mask" and hasattr(quantized, "kept"):
        return quantized.kept().to(torch.uint8), 1
    return packed.view(torch.uint8), 8
