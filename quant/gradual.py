"""Gradual pruning under a trainable adapter: the base grows sparser while the adapter learns to make up for it.

    s(t) = final + (initial - final) (1 - (t - begin) / (end - begin))**3,    begin <= t <= end

At step t the frozen dense weight below every adapter is pruned anew to s(t), fast at first, when much is redundant, and
slowly at the end. Pruning starts from the dense weight each time, so a weight that calibration or rounding chose badly
early on can come back; those weights are held, beside the pruned ones, until the training is over.

    prune = Gradual(model, Magnitude(0.5), Cubic(final=0.5, end=100))
    for step, batch in enumerate(batches):
        prune(step)                                       # before the forward pass
        ...

Source: Zhu and Gupta 2017, arXiv 1710.01878, equation 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from quant.core import Calibration, Quantizer
from quant.linear import QuantizedLinear
from quant.lora import adapted
from quant.methods.owl import OWL

__all__ = ["Cubic", "Gradual", "at_sparsity", "sparsity_of"]


@dataclass(frozen=True)
class Cubic:
    """From `initial` at step `begin` to `final` at step `end`, changing every `every` steps."""

    final: float
    end: int
    initial: float = 0.0
    begin: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.final <= 1:
            raise ValueError(f"need 0 <= initial <= final <= 1, got {self.initial} and {self.final}")
        if not 0 <= self.begin < self.end or self.every < 1:
            raise ValueError(f"need 0 <= begin < end and every >= 1, got {self.begin}, {self.end} and {self.every}")

    def sparsity(self, step: int) -> float:
        """The share that is pruned at `step`."""
        if step >= self.end:
            return self.final
        if step < self.begin:
            return self.initial
        since = (step - self.begin) // self.every * self.every
        left = 1 - since / (self.end - self.begin)
        return self.initial + (self.final - self.initial) * (1 - left**3)


class Gradual:
    """Call it with the number of the step, from 0, before the step; the bases of `model`'s adapters are changed.

    `quantizer` prunes (its own sparsity is replaced by the schedule's) and says how the rest is stored. Raises
    ValueError for a model without adapters, or with one over a base that is not dense.
    """

    def __init__(
        self,
        model: nn.Module,
        quantizer: Quantizer,
        schedule: Cubic,
        calibration: Mapping[str, Calibration] | None = None,
    ) -> None:
        self.layers = adapted(model)
        if not self.layers:
            raise ValueError("the model has no adapters; add_lora(model, config) first")
        self.dense: dict[str, nn.Linear] = {}
        for name, layer in self.layers.items():
            if isinstance(layer.base, QuantizedLinear):
                raise ValueError(f"layer {name!r} is {layer.base.weight_qt.format} already; it must be dense to start")
            self.dense[name] = layer.base
        self.quantizer = at_sparsity(quantizer, schedule.final)
        self.schedule, self.calibration = schedule, calibration
        self.sparsity: float | None = None

    def __call__(self, step: int) -> float:
        """Prune to the schedule's sparsity of `step`, where that has changed; returns it."""
        sparsity = self.schedule.sparsity(step)
        if sparsity != self.sparsity:
            weights = {name: dense.weight.detach() for name, dense in self.dense.items()}
            fitted = at_sparsity(self.quantizer, sparsity).for_layers(weights, self.calibration)
            for name, weight in weights.items():
                known = None if self.calibration is None else self.calibration.get(name)
                base = QuantizedLinear(fitted[name].quantize(weight, known), self.dense[name].bias)
                self.layers[name].base = base.requires_grad_(False)
            self.sparsity = sparsity
        return sparsity


def sparsity_of(quantizer: Quantizer) -> float:
    """The share that `quantizer` prunes; ValueError for one that prunes no share of the weights."""
    found = getattr(quantizer.method if isinstance(quantizer, OWL) else quantizer, "sparsity", None)
    if not isinstance(found, float):
        raise ValueError(f"{type(quantizer).__name__} prunes no share of the weights that a schedule could set")
    return found


def at_sparsity(quantizer: Quantizer, sparsity: float) -> Quantizer:
    """`quantizer` pruning the share `sparsity`; ValueError for one that prunes no share of the weights."""
    sparsity_of(quantizer)
    if isinstance(quantizer, OWL):
        return dataclasses.replace(quantizer, method=dataclasses.replace(quantizer.method, sparsity=sparsity))
    return dataclasses.replace(quantizer, sparsity=sparsity)  # type: ignore[call-arg]
