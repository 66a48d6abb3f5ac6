"""Canonical Huffman coding (Huffman 1952; the last stage of Deep Compression, arXiv 1510.00149).

Code words are determined by their lengths, so the table stored is one byte a symbol. Every `CHUNK` symbols the position
in the stream is stored too: the chunks decode side by side, at 32 / 1024 = 0.031 bits a symbol.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from quant.stream import Bytes, Stream, counted

__all__ = ["CHUNK", "LONGEST", "code_lengths", "decode", "encode"]

CHUNK = 1024  # symbols between two stored positions
LONGEST = 16  # bits of a code word: the decoder's table has 2**LONGEST entries
PIECE = 1 << 18  # symbols encoded at a time


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
    flat, counts = counted(symbols, bits)
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
    """The symbols of `stream`, flat: every chunk advances by one symbol a step through a table of all next bits.

    Raises ValueError for a table that is no prefix code, and for chunks that do not end where the next begins.
    """
    lengths = stream.table
    if (lone := np.flatnonzero(lengths == 255)).size or not stream.count:
        return np.full(stream.count, lone[0] if lone.size else 0, np.uint8)
    width = int(lengths.max())
    if width > LONGEST or (2.0 ** -lengths[lengths > 0].astype(float)).sum() > 1:
        raise ValueError("the word lengths of the stream are no prefix code: it is damaged")
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
    if (at[:-1] != stream.starts[1:]).any():
        raise ValueError(f"a chunk of the stream of {stream.count} symbols does not end where the next begins: damaged")
    return out.T.reshape(-1)[: stream.count]
