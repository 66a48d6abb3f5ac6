"""Budgets of sparsity by block of the model: blocks with more outliers are pruned less.

The outlier share D of a block is the share of its weights whose score |W_ij| ||X_j||_2 exceeds `factor` times the mean
score of the block. Densities lie in a band of +- `spread` around the asked one, in the order of D:

    density_l = 1 - sparsity + 2 spread ((D_l - min D) / (max D - min D) - mean)

with the mean over all weights, so the model as a whole is as sparse as it was asked to be. Where that would leave 0..1,
the band is narrowed. Layers whose names are the same up to the first number ("layers.3") are a block; a layer without
one stands alone.
Source: Yin et al. 2023, arXiv 2310.05175, where blocks are of one size.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.methods.prune import Magnitude, Pruning, check_sparsity
from quant.methods.sparsegpt import SparseGPT
from quant.methods.wanda import Wanda, input_norms

__all__ = ["OWL", "block_of", "budgets"]


@dataclass(frozen=True)
class OWL(Pruning):
    """`method` prunes each layer by its block's share; its own `sparsity` is that of the whole model."""

    method: Magnitude | SparseGPT | Wanda
    factor: float = 5.0
    spread: float = 0.08

    source = "Yin et al. 2023 (OWL), arXiv 2310.05175"
    idea = "blocks of the model with more outliers are pruned less"

    def __post_init__(self) -> None:
        if not isinstance(self.method, Magnitude | SparseGPT | Wanda):
            raise ValueError(f"method must prune a share of a layer's weights, got {type(self.method).__name__}")
        if isinstance(self.method.sparsity, str):
            raise ValueError(f"a pattern {self.method.sparsity!r} is as sparse in every layer; give a share")
        if isinstance(self.method, Magnitude) and self.method.scope != "layer":
            raise ValueError(f"scope {self.method.scope!r} sets budgets of its own; use scope 'layer'")
        if not self.factor > 0 or not 0 <= self.spread <= 1:
            raise ValueError(f"need factor > 0 and spread 0..1, got {self.factor} and {self.spread}")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"second_moment"}

    def for_layers(
        self, weights: Mapping[str, Tensor], calibration: Mapping[str, Calibration] | None = None
    ) -> Mapping[str, Quantizer]:
        if calibration is None or (lost := [name for name in weights if name not in calibration]):
            missing = "" if calibration is None else f" of {', '.join(lost[:4])}"
            raise ValueError(f"OWL needs the calibration{missing}: gather it with quant.calibrate and pass it on")
        first = {id(w): name for name, w in list(weights.items())[::-1]}  # a shared weight counts once
        owner = {name: first[id(w)] for name, w in weights.items()}
        shares, sizes = {}, {}
        blocks: dict[str, list[str]] = {}
        for name in dict.fromkeys(owner.values()):
            blocks.setdefault(block_of(name), []).append(name)
        for block, names in blocks.items():
            shares[block] = _outliers({n: (weights[n], input_norms(calibration[n])) for n in names}, self.factor)
            sizes[block] = sum(weights[n].numel() for n in names)
        found = budgets(shares, sizes, float(self.method.sparsity), self.spread)
        return {n: dataclasses.replace(self.method, sparsity=found[block_of(owner[n])]) for n in weights}

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        return self.method.quantize(weight, calibration)


def block_of(name: str) -> str:
    """The block that the layer `name` belongs to.

    >>> block_of("model.layers.3.mlp.up_proj"), block_of("project")
    ('model.layers.3', 'project')
    """
    found = re.match(r"(?:.*?\.)??\d+(?=\.|$)", name)
    return found[0] if found else name


def _outliers(layers: Mapping[str, tuple[Tensor, Tensor]], factor: float) -> float:
    """The share of weights whose score exceeds `factor` times the mean of all; of weights [n, k] and norms [k]."""

    def scores(weight: Tensor, norms: Tensor) -> Tensor:
        return weight.float().abs() * norms.to(weight.device)

    count = sum(w.numel() for w, _ in layers.values())
    mean = sum(float(scores(*layer).double().sum()) for layer in layers.values()) / count
    return sum(int((scores(*layer) > factor * mean).sum()) for layer in layers.values()) / count


def budgets(shares: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, spread: float) -> dict[str, float]:
    """The sparsity of each block, given its outliers' share and its number of weights."""
    check_sparsity(sparsity)
    low, high = min(shares.values()), max(shares.values())
    if high == low:
        return dict.fromkeys(shares, sparsity)
    place = {block: (share - low) / (high - low) for block, share in shares.items()}
    mean = sum(place[b] * sizes[b] for b in place) / sum(sizes.values())
    room = min(sparsity / (1 - mean), (1 - sparsity) / mean)  # until the densest keeps all or the sparsest nothing
    width = min(2 * spread, room)
    return {block: min(1.0, max(0.0, sparsity - width * (p - mean))) for block, p in place.items()}


register("owl-wanda-70", OWL(Wanda(0.7)))
register("owl-sparsegpt-70", OWL(SparseGPT(0.7)))
