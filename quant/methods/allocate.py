"""Mixed precision: each layer gets the quantizer with which the whole model is damaged least within a budget of bytes.

For every layer and every choice the weight is quantized; with e = decoded - w the damage is predicted as

    fisher          sum f e**2            f the mean squared gradient of the loss: twice its expected rise
    second_moment   n k tr(e H e^T) / tr(w H w^T)      H the mean x x^T: the relative squared error of the layer's
                    outputs, counted once for every weight; counted once a layer, the small layers would get all bits

and one choice a layer is taken so that the sum of the damages is least and the stored bytes, per-tensor constants left
out, stay within `bits` a weight or within so many bytes: a multiple-choice knapsack, solved to the optimum
(`quant.knapsack`).
Sources: Dong et al. 2019 (HAWQ), arXiv 1905.03696; as an integer program over layers: Guo et al. 2023 (LQ-LoRA),
arXiv 2311.12023; Fisher information of weights: Kim et al. 2023 (SqueezeLLM), arXiv 2306.07629.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, UnsupportedError, checked, register
from quant.methods.uniform import Uniform

__all__ = ["Allocated", "WithinBytes", "damage"]

SENSITIVITIES = ("fisher", "second_moment")


@dataclass(frozen=True)
class Allocated(Quantizer):
    """`choices` are the quantizers to choose from, `bits` a weight are not exceeded over the whole model."""

    choices: tuple[Quantizer, ...]
    bits: float
    sensitivity: str = "fisher"

    source = "Dong et al. 2019 (HAWQ), arXiv 1905.03696; Guo et al. 2023 (LQ-LoRA), arXiv 2311.12023"
    idea = "bits go to the layers that need them"

    def __post_init__(self) -> None:
        if not self.choices or not all(isinstance(c, Quantizer) for c in self.choices):
            raise ValueError(f"choices must be quantizers, at least one, got {self.choices!r}")
        if len({c.trainable for c in self.choices}) > 1:
            raise ValueError("choices must agree on what is trainable")
        if not 0 < self.bits <= 32:
            raise ValueError(f"bits must be above 0, up to 32, got {self.bits}")
        if self.sensitivity not in SENSITIVITIES:
            raise ValueError(f"sensitivity must be one of {', '.join(SENSITIVITIES)}, got {self.sensitivity!r}")

    @property
    def family(self) -> str:
        return self.choices[0].family

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.sensitivity}).union(*(c.needs for c in self.choices))

    @property
    def trainable(self) -> tuple[str, ...]:
        return self.choices[0].trainable

    def for_layers(
        self, weights: Mapping[str, Tensor], calibration: Mapping[str, Calibration] | None = None
    ) -> Mapping[str, Quantizer]:
        total = sum(weight.numel() for weight in {id(w): w for w in weights.values()}.values())
        return self.within(int(self.bits * total / 8), weights, calibration)

    def within(
        self, budget: int, weights: Mapping[str, Tensor], calibration: Mapping[str, Calibration] | None = None
    ) -> Mapping[str, Quantizer]:
        """The quantizer of each layer such that all of them are stored in `budget` bytes, whatever `bits` is."""
        from quant.knapsack import choose  # scipy's solver takes half a second to import

        fitted = [choice.for_layers(weights, calibration) for choice in self.choices]
        first: dict[int, str] = {}
        for name, weight in weights.items():
            first.setdefault(id(weight), name)
        lost, size = self._measured({name: weights[name] for name in first.values()}, fitted, calibration)
        total = sum(weights[name].numel() for name in first.values())
        try:
            picks = dict(zip(first.values(), choose(lost, size, budget), strict=True))
        except ValueError as error:
            least = int(size.min(1).sum())
            raise UnsupportedError(
                f"no choice is within {8 * budget / total:.4g} bits a weight ({budget} bytes): they need "
                f"{8 * least / total:.3f} ({least})"
            ) from error
        return {name: fitted[picks[first[id(weight)]]][name] for name, weight in weights.items()}

    def _measured(
        self,
        weights: Mapping[str, Tensor],
        fitted: list[Mapping[str, Quantizer]],
        calibration: Mapping[str, Calibration] | None,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """(damage, stored bytes without constants) [layers, choices]."""
        lost = np.zeros((len(weights), len(fitted)))
        size = np.zeros(lost.shape, np.int64)
        for i, (name, weight) in enumerate(weights.items()):
            known = calibration[name] if calibration is not None and name in calibration else None
            self._check(known, weight)
            assert known is not None
            original = checked(weight)
            for j, choice in enumerate(fitted):
                stored = choice[name].quantize(original, known if choice[name].needs else None)
                lost[i, j] = damage(original, stored.decode(), known, self.sensitivity)
                size[i, j] = stored.nbytes - stored.parts().get("constants", 0)
        return lost, size

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        """As a model of this one layer; `for_layers` gives each layer its choice instead."""
        assert calibration is not None
        return self.for_layers({"layer": weight}, {"layer": calibration})["layer"].quantize(weight, calibration)


@dataclass(frozen=True)
class WithinBytes(Quantizer):
    """The layers of one model in `n_bytes`, those of weights that layers share counted once.

    Bytes are of the quantized layers, per-tensor constants left out; what is not quantized (embeddings, norms, heads)
    comes on top, see *whole model* in the tables of memory. The other settings are those of `Allocated`.
    """

    choices: tuple[Quantizer, ...]
    n_bytes: int
    sensitivity: str = "fisher"

    source = Allocated.source
    idea = "the least damage in so many bytes"

    def __post_init__(self) -> None:
        if isinstance(self.n_bytes, bool) or not isinstance(self.n_bytes, int) or self.n_bytes <= 0:
            raise ValueError(f"n_bytes must be a positive integer, got {self.n_bytes!r}")
        self._allocated()  # checks the rest

    def _allocated(self) -> Allocated:
        return Allocated(self.choices, 32.0, self.sensitivity)

    @property
    def family(self) -> str:
        return self._allocated().family

    @property
    def needs(self) -> frozenset[str]:
        return self._allocated().needs

    @property
    def trainable(self) -> tuple[str, ...]:
        return self._allocated().trainable

    def for_layers(
        self, weights: Mapping[str, Tensor], calibration: Mapping[str, Calibration] | None = None
    ) -> Mapping[str, Quantizer]:
        return self._allocated().within(self.n_bytes, weights, calibration)

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        """As a model of this one layer."""
        assert calibration is not None
        return self.for_layers({"layer": weight}, {"layer": calibration})["layer"].quantize(weight, calibration)


def damage(weight: Tensor, decoded: Tensor, calibration: Calibration, sensitivity: str) -> float:
    """What `decoded` [n, k] in place of `weight` costs, see the module's docstring; 0 for a layer without outputs."""
    e = decoded - weight
    if sensitivity == "fisher":
        assert calibration.fisher is not None
        return float(torch.dot(calibration.fisher.float().flatten(), e.square().flatten()))
    assert calibration.second_moment is not None
    moment = calibration.second_moment.float()
    energy = float(((weight @ moment) * weight).sum())
    return e.numel() * float(((e @ moment) * e).sum()) / energy if energy > 0 else 0.0


_INTEGERS = tuple(Uniform(bits, 64, zero="integer") for bits in (2, 3, 4, 5))
register("mixed-3bit", Allocated(_INTEGERS[:3], 3.3))
register("mixed-4bit", Allocated(_INTEGERS[1:], 4.3))
