"""What an entropy coder writes, and what all of them check first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bytes", "Stream", "counted"]

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Stream:
    """`data` uint8; `starts` what decoding side by side begins with; `table` the code; `count` symbols.

    Huffman: bit position of every chunk, bits of each symbol's word. Numeral systems: last state of every lane,
    frequency of each symbol.
    """

    data: Bytes
    starts: NDArray[Any]
    table: NDArray[Any]
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return int(self.data.nbytes + self.starts.nbytes + self.table.nbytes)


def counted(symbols: Bytes, bits: int) -> tuple[Bytes, NDArray[np.int64]]:
    """`symbols` flat, and how often each of 0 .. 2**bits - 1 occurs; ValueError for a symbol beyond."""
    flat = np.ascontiguousarray(symbols).reshape(-1)
    counts = np.bincount(flat, minlength=1 << bits)
    if len(counts) > 1 << bits:
        raise ValueError(f"symbol {len(counts) - 1} does not fit in {bits} bits")
    return flat, counts
