"""Block sparsity: the rectangles of smallest Euclidean norm become zero, and any quantizer stores the others.

Of all choices of so many blocks it is the one of least squared error. Counts are exact; of equal norms the first go.
Source: after Narang, Undersander and Diamos 2017, arXiv 1711.02782, who take a block's largest magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats.kept_blocks import KeptBlocks, cut
from quant.methods.prune import BF16, Pruning, check_sparsity
from quant.methods.uniform import Uniform

__all__ = ["Blocks"]


@dataclass(frozen=True)
class Blocks(Pruning):
    """Prune the share `sparsity` of the blocks of `rows` x `columns` weights; `values` sees each kept one as a row."""

    sparsity: float = 0.5
    rows: int = 16
    columns: int = 16
    values: Quantizer = BF16

    source = "after Narang et al. 2017, arXiv 1711.02782"
    idea = "the rectangles of smallest norm are zero, one bit a block"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"a block must have rows and columns, got {self.rows} x {self.columns}")

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        cells = cut(weight, self.rows, self.columns)
        norms = cells.double().square().sum(2)
        keep = torch.ones_like(norms, dtype=torch.bool)
        order = norms.flatten().argsort(stable=True)
        keep.view(-1)[order[: round(self.sparsity * norms.numel())]] = False
        kept = cells[keep]
        values = self.values.quantize(kept) if len(kept) else None
        mask = pack(keep.to(torch.uint8), 1)
        n, k = weight.shape
        return KeptBlocks((n, k), torch.float32, mask, values, self.rows, self.columns)


register("blocks-50-16x16", Blocks(0.5))
register("blocks-50-8x8-int4-g64", Blocks(0.5, 8, 8, Uniform(4, 64)))
