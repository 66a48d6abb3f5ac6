"""Dense-and-sparse decomposition: a few weights are stored apart, and any method quantizes the rest.

Apart go the share `sensitive` of largest Fisher information, whatever their size, and of the others the share `largest`
of largest magnitude, which would stretch the grid of all. `inner` sees zeros there, of no Fisher information; what it
makes of them is made good in float16. With 32-bit column indices a share of 0.45 % costs .0045 * 48 = .216 bits a
weight, and row pointers 32 / k; with 16-bit ones .144.
Source: Kim et al. 2023 (SqueezeLLM), arXiv 2306.07629, section 4.2.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import WithOutliers
from quant.methods.double import DynamicMap
from quant.methods.kmeans import KMeans
from quant.methods.nf4 import NF

__all__ = ["Outliers"]

INDICES = {"int16": torch.int16, "int32": torch.int32}


@dataclass(frozen=True)
class Outliers(Quantizer):
    """`inner` for all but the shares `sensitive` and `largest` of the weights, which are stored in CSR.

    `index` "int16" or "int32" stores the columns; beyond 32768 of them it is always int32.
    """

    inner: Quantizer = field(default_factory=lambda: NF(scale=DynamicMap()))
    sensitive: float = 0.0005
    largest: float = 0.004
    index: str = "int16"

    source = "Kim et al. 2023 (SqueezeLLM), arXiv 2306.07629"
    idea = "a few sensitive and a few large weights are stored apart in float16"

    def __post_init__(self) -> None:
        for name in ("sensitive", "largest"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share 0..1, got {getattr(self, name)}")
        if self.sensitive + self.largest > 1:
            raise ValueError(f"sensitive {self.sensitive} and largest {self.largest} are more than all weights")
        if self.index not in INDICES:
            raise ValueError(f"index must be one of {', '.join(INDICES)}, got {self.index!r}")

    @property
    def family(self) -> str:
        return self.inner.family

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"fisher"} if self.sensitive else set())

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        fisher = None if calibration is None else calibration.fisher
        apart = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        if self.sensitive:
            assert fisher is not None
            score = fisher.to(weight.device, torch.float32).flatten()
            apart[score.topk(round(self.sensitive * len(score))).indices] = True
        size = weight.abs().flatten().masked_fill_(apart, -1.0)
        apart[size.topk(round(self.largest * len(size))).indices] = True
        hidden = apart.view_as(weight)
        known = calibration
        if calibration is not None and fisher is not None:
            known = dataclasses.replace(calibration, fisher=fisher.masked_fill(hidden.to(fisher.device), 0.0))
        inner = self.inner.quantize(weight.masked_fill(hidden, 0.0), known)
        index = INDICES[self.index] if weight.shape[1] <= 1 << 15 else torch.int32
        return WithOutliers.store(inner, weight, apart.nonzero()[:, 0], index)


register("squeezellm-3bit-outliers", Outliers(KMeans(3, 1, importance="fisher")))
register("nf4-g64-dq-outliers", Outliers(sensitive=0.0))
