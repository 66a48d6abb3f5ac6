"""The density of one layer's weights and of its errors, and where the method's levels lie among them.

Both histograms have `BINS` equal bins around zero, out to the largest magnitude or `REACH` root mean squares,
whichever is less; the densities (per unit of weight) integrate to the share that lies inside, `inside` and
`error_inside`. `levels` are in the unit of the weights: the table, or the grid of codes, at the layer's median scale
(and median zero point), which is exact where the layer has one scale. It is null for a format without levels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quant import QuantizedTensor
from quant.formats import Affine, Codebook
from quant.grouping import decode_scale

__all__ = ["BINS", "histogram", "levels_of"]

BINS = 80
REACH = 5.0


def histogram(original: Tensor, restored: Tensor, quantized: QuantizedTensor) -> dict[str, Any]:
    """edges [BINS + 1], weight_density [BINS], error_edges, error_density and levels, as lists of floats."""
    edges, density, inside = _density(original)
    error_edges, error_density, error_inside = _density(restored - original)
    return {
        "edges": edges,
        "weight_density": density,
        "inside": inside,
        "error_edges": error_edges,
        "error_density": error_density,
        "error_inside": error_inside,
        "levels": levels_of(quantized),
    }


def levels_of(quantized: QuantizedTensor) -> list[float] | None:
    """The values a weight may take at the median scale, ascending; null for a format without levels.

    A table for each group of rows is averaged level by level. A format around another (a reshaped or a pruned weight)
    has the levels of its values.
    """
    if isinstance(quantized, Codebook):
        levels = quantized.levels.float().sort(dim=-1).values.mean(dim=0)
        if quantized.scale is not None:
            levels = levels * decode_scale(quantized.scale).median()
        if quantized.offset is not None:
            levels = levels + quantized.offset.float()
    elif isinstance(quantized, Affine):
        codes = torch.arange(1 << quantized.bits, dtype=torch.float32)
        half = float(1 << (quantized.bits - 1))
        zero = half if quantized.zero is None else float(decode_scale(quantized.zero).median())
        levels = (codes - zero) * float(decode_scale(quantized.scale).median())
    else:
        inner = [v for v in quantized.fields().values() if isinstance(v, QuantizedTensor)]
        return levels_of(inner[0]) if inner else None
    return sorted({float(v) for v in levels}) if bool(levels.isfinite().all()) else None


def _density(values: Tensor) -> tuple[list[float] | None, list[float] | None, float | None]:
    """(edges, density, share inside), or nulls where all values are zero or one is not finite."""
    values = values.flatten().cpu()
    size = float(values.abs().amax())
    if not 0 < size < float("inf"):
        return None, None, None
    reach = min(size, REACH * float(values.square().mean().sqrt())) or size
    counts = torch.histc(values, BINS, -reach, reach).double()
    width = 2 * reach / BINS
    density = counts / (values.numel() * width)
    edges = [-reach + i * width for i in range(BINS + 1)]
    return edges, [float(v) for v in density], float(counts.sum()) / values.numel()
