"""The codes of any codebook method in an entropy code: the same weights in fewer bits, to be decoded when loaded.

Levels that lie where the weights are dense are used often, so the codes of NF4 on blocks of 64 have 3.88 bits of
entropy, and those of the best 16 levels of a Gaussian 3.77. Source: the last stage of Deep Compression, Han, Mao and
Dally 2016, arXiv 1510.00149; numeral systems: Duda 2013, arXiv 1311.2540.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats.coded import check_coder, coded
from quant.methods.double import DynamicMap
from quant.methods.kmeans import KMeans
from quant.methods.nf4 import NF

__all__ = ["EntropyCoded"]


@dataclass(frozen=True)
class EntropyCoded(Quantizer):
    """`inner` gives a codebook weight; `coder` is "huffman" or "ans"."""

    inner: Quantizer
    coder: str = "ans"

    source = "Han, Mao and Dally 2016, arXiv 1510.00149; Duda 2013, arXiv 1311.2540"
    idea = "the codes of another method, entropy-coded without loss"

    def __post_init__(self) -> None:
        check_coder(self.coder)

    @property
    def family(self) -> str:
        return self.inner.family

    @property
    def trainable(self) -> tuple[str, ...]:
        return self.inner.trainable

    def for_layers(
        self, weights: Mapping[str, Tensor], calibration: Mapping[str, Calibration] | None = None
    ) -> Mapping[str, Quantizer]:
        fitted = self.inner.for_layers(weights, calibration)
        return {name: dataclasses.replace(self, inner=quantizer) for name, quantizer in fitted.items()}

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        return coded(self.inner.quantize(weight, calibration), self.coder)


register("nf4-g64-dq-ans", EntropyCoded(NF(scale=DynamicMap())))
register("kmeans-4bit-tensor-ans", EntropyCoded(KMeans(4, 0)))
