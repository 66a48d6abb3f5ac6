"""An entropy coder that spends fractions of a bit: range asymmetric numeral systems (Duda 2013, arXiv 1311.2540).

A state x in [2**16, 2**32) holds the symbols coded so far. With frequencies f that sum to 2**14 and their cumulative
sums c, symbol s takes it to

    x' = (x div f_s) 2**14 + c_s + x mod f_s            a growth by 2**14 / f_s, so by log2(2**14 / f_s) bits

and a state that would leave its range first gives its lower 16 bits to the stream. The decoder goes back the same way:
s is the symbol in whose range x mod 2**14 lies. Symbol i belongs to lane i mod `lanes`; the lanes share one stream and
advance side by side, a step of all of them being a few operations on arrays (Giesen 2014, arXiv 1402.3392). A lane
costs its last state, 32 bits for about `LANE` symbols.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.stream import Bytes, Stream, counted

__all__ = ["LANE", "PRECISION", "decode", "encode", "frequencies"]

Whole = NDArray[np.int64]

PRECISION = 14  # bits: frequencies sum to 2**14; the sum of 256 rounded ones is then off by 0.01 % of a symbol's bits
LANE = 2048  # symbols a lane
WORD = 16  # bits that a state gives or takes at once
LOW = 1 << WORD  # the least state


def frequencies(counts: NDArray[Any]) -> Whole:
    """Whole frequencies that sum to 2**PRECISION, nearly in proportion to `counts`, at least 1 where a symbol occurs.

    What rounding leaves over is given to, or taken from, the symbols where the coded length gains most or loses least.
    """
    counts = np.asarray(counts, np.float64)
    total = 1 << PRECISION
    f = np.where(counts > 0, np.maximum(1, np.rint(counts * (total / max(1.0, counts.sum())))), 0).astype(np.int64)
    while counts.any() and (left := total - int(f.sum())):
        after = f + (1 if left > 0 else -1)
        able = (counts > 0) & (after > 0)
        change = np.full(len(f), -np.inf)
        change[able] = counts[able] * np.log2(after[able] / f[able])
        f[np.argmax(change)] = after[np.argmax(change)]
    return f


def encode(symbols: Bytes, bits: int) -> Stream:
    """`symbols` uint8 of any shape, each below 2**bits, to a stream. Raises ValueError for a symbol beyond."""
    flat, counts = counted(symbols, bits)
    f = frequencies(counts)
    first = np.cumsum(f) - f
    lanes = max(1, -(-len(flat) // LANE))
    state = np.full(lanes, LOW, np.int64)
    words: list[Whole] = []
    for start in reversed(range(0, len(flat), lanes)):
        s = flat[start : start + lanes]
        x, own = state[: len(s)], f[s]
        over = x >= own << (2 * WORD - PRECISION)
        words.append(x[over] & (LOW - 1))
        x = np.where(over, x >> WORD, x)
        quotient, rest = np.divmod(x, own)
        state[: len(s)] = (quotient << PRECISION) + rest + first[s]
    data = np.concatenate([*words[::-1], np.zeros(0, np.int64)]).astype("<u2").view(np.uint8)
    return Stream(data, state.astype(np.uint32), f.astype(np.uint16), len(flat))


def decode(stream: Stream) -> Bytes:
    """The symbols of `stream`, flat. Raises ValueError for a stream that does not end where it began: it is damaged."""
    f = stream.table.astype(np.int64)
    out = np.zeros(stream.count, np.uint8)
    if not stream.count:
        return out
    if int(f.sum()) != 1 << PRECISION or len(f) > 256:
        raise ValueError(f"the frequencies of the stream sum to {int(f.sum())}, not to {1 << PRECISION}: it is damaged")
    symbol = np.repeat(np.arange(len(f)), f)
    own, place = f[symbol], np.arange(len(symbol)) - (np.cumsum(f) - f)[symbol]
    symbol = symbol.astype(np.uint8)
    words = stream.data.view("<u2").astype(np.int64)
    state = stream.starts.astype(np.int64)
    lanes, at = len(state), 0
    for start in range(0, stream.count, lanes):
        x = state[: stream.count - start]
        slot = x & ((1 << PRECISION) - 1)
        out[start : start + lanes] = symbol[slot]
        x >>= PRECISION
        x *= own[slot]
        x += place[slot]
        under = np.flatnonzero(x < LOW)
        taken = words[at : at + len(under)]
        if len(taken) < len(under):
            raise ValueError(f"the stream ends before symbol {start} of {stream.count}: it is damaged")
        x[under] = x[under] << WORD | taken
        at += len(under)
    if at != len(words) or (state != LOW).any():
        raise ValueError(f"the stream of {stream.count} symbols does not end where it began: it is damaged")
    return out
