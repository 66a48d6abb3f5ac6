"""What is measured only to judge a difference: methods at other settings, moved copies, budgets that follow depth.

A moved copy is a method whose scales are moved at random by so little that its error stays what it was, so that other
weights round up. An interval over texts says nothing of this: two quantizers of equal error differ by as much as two
copies do, and the difference is then one of the draw of roundings and not of the quantizers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, UnsupportedError
from quant.formats import Dense
from quant.grouping import store_scale
from quant.methods.double import DynamicMap
from quant.methods.hqq import HQQ
from quant.methods.nf4 import NF
from quant.methods.owl import OWL, block_of
from quant.methods.uniform import Uniform
from quant.methods.wanda import Wanda
from quant.peers.base import register_control

__all__ = ["ByDepth", "Moved", "MovedScales"]


@dataclass(frozen=True)
class MovedScales(Quantizer):
    """Scales times 1 + `amount` * z, z standard normal of the seed `draw`, then stored as `scale` says."""

    scale: str | Quantizer = "float16"
    amount: float = 1e-3
    draw: int = 0

    source = "this suite"
    idea = "scales moved at random"

    @property
    def family(self) -> str:
        return "double quantization"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        z = torch.randn(weight.shape, generator=torch.Generator().manual_seed(self.draw)).to(weight.device)
        n, k = weight.shape
        stored = store_scale(weight * (1 + self.amount * z), self.scale)
        return Dense((n, k), torch.float32, stored) if isinstance(stored, Tensor) else stored


@dataclass(frozen=True)
class Moved(Quantizer):
    """The quantizer `method`, called `of` in this suite, with its scales moved by `amount`."""

    method: Quantizer
    of: str
    amount: float = 1e-3
    draw: int = 0

    source = "this suite"
    idea = "a method with its scales moved at random, so that other weights round up"

    @property
    def family(self) -> str:
        return self.method.family

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        scale = MovedScales(self.method.scale, self.amount, self.draw)  # type: ignore[attr-defined]
        return dataclasses.replace(self.method, scale=scale).quantize(weight)  # type: ignore[call-arg]


@dataclass(frozen=True)
class ByDepth(Quantizer):
    """`method` prunes the first block of the model to `first`, the last to `last`, those between in a straight line.

    A single block is pruned as `method` says.
    """

    method: Wanda
    first: float
    last: float

    source = "this suite"
    idea = "budgets of sparsity that follow depth alone"

    @property
    def family(self) -> str:
        return self.method.family

    @property
    def needs(self) -> frozenset[str]:
        return self.method.needs

    def for_layers(
        self, weights: Mapping[str, Tensor], calibration: Mapping[str, Calibration] | None = None
    ) -> Mapping[str, Quantizer]:
        sizes = dict.fromkeys(map(block_of, weights), 0)
        for name, weight in weights.items():
            sizes[block_of(name)] += weight.numel()
        if len(sizes) < 2:
            return dict.fromkeys(weights, self.method)
        if len(set(sizes.values())) > 1:
            raise UnsupportedError(
                f"budgets by depth need blocks of one size, got {min(sizes.values())} to {max(sizes.values())} weights"
            )
        blocks = list(sizes)
        share = torch.linspace(self.first, self.last, len(blocks), dtype=torch.float64).tolist()
        found = dict(zip(blocks, share, strict=True))
        return {name: dataclasses.replace(self.method, sparsity=found[block_of(name)]) for name in weights}

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        return self.method.quantize(weight, calibration)


for _name, _budgets in {
    "owl-3": OWL(Wanda(0.7), factor=3.0),
    "owl-10": OWL(Wanda(0.7), factor=10.0),
    "owl-wide": OWL(Wanda(0.7), spread=0.15),
    "dense-in-front": ByDepth(Wanda(0.7), 0.62, 0.78),
    "dense-behind": ByDepth(Wanda(0.7), 0.78, 0.62),
}.items():
    register_control(f"control-wanda-70-{_name}", _budgets)
register_control("control-int2-float-zero-g64", Uniform(2, 64, zero="float"))
for _of, _method in (
    ("hqq-int4-g64", HQQ(4, 64)),
    ("hqq-int3-g64", HQQ(3, 64)),
    ("nf4-g64-dq", NF(scale=DynamicMap())),
):
    for _draw in (1, 2, 3):
        register_control(f"control-{_of}-moved-{_draw}", Moved(_method, _of, draw=_draw))
