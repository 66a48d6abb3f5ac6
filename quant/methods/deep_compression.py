"""Deep Compression: prune, let the kept weights share a few values, store where and which in an entropy code.

prune     the share `sparsity` of smallest magnitude in the layer
cluster   the kept weights, by `quant.methods.cluster`; with `tune` the centroids are trainable, the gradient of each
          being the sum of the gradients of its weights
index     the distance from each kept weight to the next, over fillers where it is long: `quant.formats.relative`
code      distances and codes as `coder` writes them; None leaves both packed, as they must be while centroids learn,
          for a stream would be read again at every step; once they have learnt, `Relative.encoded` is the last stage
Source: Han, Mao and Dally 2016, arXiv 1510.00149.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import BitMask, Codebook
from quant.formats.coded import check_coder
from quant.formats.relative import Relative
from quant.methods.cluster import Cluster
from quant.methods.prune import Magnitude, check_sparsity

__all__ = ["DeepCompression"]


@dataclass(frozen=True)
class DeepCompression(Quantizer):
    """`clusters` 2..255 of the kept weights, `init` as in `Cluster`; `gap_bits` 1..8; `coder` may be None."""

    sparsity: float = 0.5
    clusters: int = 31
    init: str = "linear"
    gap_bits: int = 4
    coder: str | None = "huffman"
    tune: bool = False

    source = "Han, Mao and Dally 2016 (Deep Compression), arXiv 1510.00149"
    idea = "pruned, clustered, relative indices, entropy-coded"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        Cluster(self.clusters, self.init)
        if self.clusters > 255:
            raise ValueError(f"clusters must be at most 255, one code is the filler's; got {self.clusters}")
        if not 1 <= self.gap_bits <= 8:
            raise ValueError(f"gap_bits must be 1..8, got {self.gap_bits}")
        if self.coder is not None:
            check_coder(self.coder)

    @property
    def family(self) -> str:
        return "clustering"

    @property
    def trainable(self) -> tuple[str, ...]:
        return ("levels",) if self.tune else ()

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        pruned = Magnitude(self.sparsity).quantize(weight)
        assert isinstance(pruned, BitMask)
        keep = pruned.kept()
        kept = weight[keep]
        if len(kept):
            shared = Cluster(self.clusters, self.init, self.tune).quantize(kept[None])
            assert isinstance(shared, Codebook)
            codes, levels = shared.unpacked()[0], shared.levels
        else:
            codes, levels = kept.to(torch.uint8), kept.new_zeros(1, 1)
        bits = self.clusters.bit_length()
        return Relative.store(keep, codes, levels, bits=bits, gap_bits=self.gap_bits, coder=self.coder)


register("deep-compression-50", DeepCompression(0.5))
register("deep-compression-50-ans", DeepCompression(0.5, init="exact", coder="ans"))
register("deep-compression-70-ans", DeepCompression(0.7, 15, init="exact", coder="ans"))
register("deep-compression-50-tuned", DeepCompression(0.5, coder=None, tune=True))
