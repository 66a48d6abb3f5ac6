"""A pruned codebook weight by relative indices: of every weight kept, how far it is from the one before, and its code.

In row-major order a distance d = 1, 2, ... is stored as d - 1 in `gap_bits` bits. A weight more than 2**gap_bits away
is reached over fillers, entries with the largest gap and code 0, that stand for a weight of zero. If weights are kept
at random with density p = 1 - q, a kept one needs sum_j P(d > j 2**gap_bits) = q**m / (1 - q**m) fillers on average,
m = 2**gap_bits. Source: Han, Mao and Dally 2016 (Deep Compression), arXiv 1510.00149, section 2.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import QuantizedTensor
from quant.formats.affine import Integers
from quant.formats.codebook import Codebook
from quant.formats.coded import Coded, Symbols

__all__ = ["Relative"]


@dataclass(frozen=True, eq=False)
class Relative(Coded, format="relative"):
    """`gaps` and `codes` [1, entries], packed or in an entropy code; `levels` [1, L] of codes 1 .. L, L < 2**bits.

    Both are None when nothing is kept.
    """

    gaps: Symbols | Integers | None
    codes: Symbols | Integers | None
    levels: Tensor
    bits: int

    stored_parts = {"gaps": "mask", "codes": "inherit", "levels": "levels"}

    def __post_init__(self) -> None:
        if self.levels.ndim != 2 or len(self.levels) != 1 or not 0 < self.levels.shape[1] < 1 << self.bits:
            raise ValueError(f"levels must be [1, 1 .. {(1 << self.bits) - 1}], got {list(self.levels.shape)}")
        if self.gaps is None or self.codes is None:
            if self.gaps is not self.codes:
                raise ValueError("gaps and codes must both be there or both be absent")
        elif self.gaps.shape != self.codes.shape or self.gaps.shape[0] != 1:
            raise ValueError(f"gaps {list(self.gaps.shape)} and codes {list(self.codes.shape)} must be [1, entries]")

    @classmethod
    def store(
        cls, keep: Tensor, codes: Tensor, levels: Tensor, *, bits: int, gap_bits: int, coder: str | None
    ) -> Relative:
        """Of `keep` [n, k] bool, and of each kept weight its code [kept] uint8, its place in `levels` [1, L].

        Without `coder` gaps take `gap_bits` and codes `bits` bits.
        """
        shape = (keep.shape[0], keep.shape[1])
        at = keep.flatten().nonzero()[:, 0]
        if not len(at):
            return cls(shape, torch.float32, None, None, levels, bits)
        before = torch.diff(at, prepend=at.new_full((1,), -1)) - 1
        fillers = before >> gap_bits
        place = (fillers + 1).cumsum(0) - 1
        gaps = torch.full((1, int(place[-1]) + 1), (1 << gap_bits) - 1, dtype=torch.uint8, device=keep.device)
        entries = torch.zeros_like(gaps)
        gaps[0, place] = (before & ((1 << gap_bits) - 1)).to(torch.uint8)
        entries[0, place] = codes + 1
        plainly = cls(shape, torch.float32, Integers.store(gaps, gap_bits), Integers.store(entries, bits), levels, bits)
        return plainly if coder is None else plainly.encoded(coder)

    def encoded(self, coder: str) -> Relative:
        """The same weight, to the bit, with gaps and codes as `coder` writes them."""
        if self.gaps is None or self.codes is None:
            return self
        gaps, codes = (Symbols.store(whole(n), n.bits, coder) for n in (self.gaps, self.codes))
        return dataclasses.replace(self, gaps=gaps, codes=codes)

    @property
    def entries(self) -> int:
        """Weights kept and fillers."""
        return 0 if self.codes is None else self.codes.shape[1]

    def plain(self) -> Codebook:
        n, k = self.shape
        dense = torch.zeros(n * k, dtype=torch.uint8, device=self.levels.device)
        if self.gaps is not None and self.codes is not None:
            at = (whole(self.gaps).long() + 1).cumsum(1)[0] - 1
            if int(at[-1]) >= n * k:
                raise ValueError(f"the gaps reach weight {int(at[-1])} of {n * k}: they are damaged")
            dense[at] = whole(self.codes)[0]
        levels = torch.cat([self.levels.new_zeros(1, 1), self.levels], 1)
        codes = pack(dense.view(n, k), self.bits)
        return Codebook(self.shape, self.dtype, codes, levels, None, None, self.bits, "tensor", 0)


def whole(numbers: QuantizedTensor) -> Tensor:
    """The numbers [n, k] uint8 that symbols or packed integers stand for."""
    return numbers.symbols() if isinstance(numbers, Symbols) else numbers.decode().to(torch.uint8)
