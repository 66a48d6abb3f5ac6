"""How small the codes become when their frequencies are used: the order-0 entropy, and a real lossless coder.

The coder is canonical Huffman (Huffman 1952; the last stage of Deep Compression, arXiv 1510.00149): code words are
determined by their lengths, so the table stored is one byte a symbol. Every `CHUNK` symbols the position in the stream
is stored too: the chunks decode side by side, at 32 / 1024 = 0.031 bits a symbol.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.packing import unpack
from quant.core import QuantizedTensor

__all__ = ["Stream", "code_lengths", "decode", "encode", "entropy", "entropy_bits", "huffman_bits", "huffman_bytes"]

Bytes = NDArray[np.uint8]

CHUNK = 1024  # symbols between two stored positions
LONGEST = 16  # bits of a code word: the decoder's table has 2**LONGEST entries
PIECE = 1 << 18  # symbols encoded at a time


@dataclass(frozen=True, eq=False)
class Stream:
    """`data` uint8, first bit highest; `starts` bit position of every chunk; `lengths` bits of each symbol's word."""

    data: Bytes
    starts: NDArray[Any]
    lengths: Bytes
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return int(self.data.nbytes + self.starts.nbytes + self.lengths.nbytes)


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
    return encode(np.packbits(symbols), 8).nbytes if bits == 1 else encode(symbols, bits).nbytes


def _bits(quantized: QuantizedTensor, size: Callable[[Tensor, int], float]) -> float:
    """Total bits, where `size(codes, bits)` says what codes and masks take."""
    total = 0.0
    for name, value in quantized.fields().items():
        part = quantized.stored_parts[name]
        if part == "constants":
            continue
        if isinstance(value, QuantizedTensor):
            stored = 8 * (value.nbytes - value.parts().get("constants", 0))
            total += _bits(value, size) if part == "inherit" else stored
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


def code_lengths(counts: NDArray[np.int64]) -> Bytes:
    """Bits of the Huffman word of each symbol, 0 for one that does not occur or occurs alone; at most `LONGEST`.

    Counts so skewed that a word would be longer are halved (kept above zero) until none is.
    """
    counts = np.asarray(counts, np.int64)
    while True:
        lengths = np.zeros(len(counts), np.uint8)
        heap: list[tuple[int, int, tuple[int, ...]]] = [(int(c), i, (i,)) for i, c in enumerate(counts) if c]
        heapq.heapify(heap)
        for tie in range(len(counts), len(counts) + len(heap) - 1):
            (a, _, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
            lengths[list(left + right)] += 1
            heapq.heappush(heap, (a + b, tie, left + right))
        if not len(lengths) or lengths.max() <= LONGEST:
            return lengths
        counts = counts - counts // 2


def _words(lengths: Bytes) -> NDArray[np.int64]:
    """Canonical code words: by length, then by symbol, each the last plus one, shifted to its length."""
    words = np.zeros(len(lengths), np.int64)
    word, previous = 0, 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)):
        if length := int(lengths[symbol]):
            word <<= length - previous
            words[symbol], word, previous = word, word + 1, length
    return words


def encode(symbols: Bytes, bits: int) -> Stream:
    """`symbols` uint8 of any shape, each below 2**bits, to a stream. Raises ValueError for a symbol beyond."""
    flat = np.ascontiguousarray(symbols).reshape(-1)
    counts = np.bincount(flat, minlength=1 << bits)
    if len(counts) > 1 << bits:
        raise ValueError(f"symbol {len(counts) - 1} does not fit in {bits} bits")
    lengths = code_lengths(counts)
    if not lengths.any():  # one symbol at most: nothing to write but which it is
        lone = np.zeros_like(lengths)
        lone[counts > 0] = 255
        return Stream(np.zeros(0, np.uint8), np.zeros(0, np.uint32), lone, len(flat))
    width = int(lengths.max())
    place = np.arange(width)
    used = place < lengths[:, None]
    word = (_words(lengths)[:, None] >> np.maximum(lengths[:, None].astype(np.int64) - 1 - place, 0) & 1).astype(
        np.uint8
    )
    pieces = [flat[i : i + PIECE] for i in range(0, len(flat), PIECE)]
    data = np.packbits(np.concatenate([word[part][used[part]] for part in pieces]))
    ends = np.cumsum(lengths[flat], dtype=np.int64)
    starts = np.concatenate([[0], ends[CHUNK - 1 : -1 : CHUNK]])
    return Stream(data, starts.astype(np.uint32 if ends[-1] < 1 << 32 else np.uint64), lengths, len(flat))


def decode(stream: Stream) -> Bytes:
    """The symbols of `stream`, flat: every chunk advances by one symbol a step through a table of all next bits."""
    lengths = stream.lengths
    if (lone := np.flatnonzero(lengths == 255)).size or not stream.count:
        return np.full(stream.count, lone[0] if lone.size else 0, np.uint8)
    width = int(lengths.max())
    symbol, step = np.zeros(1 << width, np.uint8), np.zeros(1 << width, np.int64)
    words = _words(lengths)
    for s in np.flatnonzero(lengths):
        first = int(words[s]) << (width - int(lengths[s]))
        run = slice(first, first + (1 << (width - int(lengths[s]))))
        symbol[run], step[run] = s, lengths[s]
    data = np.concatenate([stream.data, np.zeros(4, np.uint8)]).astype(np.int64)
    window = data[:-2] << 16 | data[1:-1] << 8 | data[2:]  # 24 bits from every byte on: 7 of offset and a word
    at = stream.starts.astype(np.int64)
    out = np.empty((CHUNK, len(at)), np.uint8)
    for j in range(CHUNK):
        bits = window[np.minimum(at >> 3, len(window) - 1)] >> (24 - width - (at & 7)) & ((1 << width) - 1)
        out[j] = symbol[bits]
        at += step[bits]
    return out.T.reshape(-1)[: stream.count]
