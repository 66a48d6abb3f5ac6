"""A model whose linear layers are quantized, with adapters that start from one of `INITS`.

The starts give B A = the correction; the adapter multiplies by alpha / rank, so both factors are divided by its root.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quant.core import Calibration, QuantizedTensor, Quantizer
from quant.init.base import Init, Start
from quant.init.table import INITS
from quant.lora import LoRALayer, adapted, add_lora, targeted
from quant.lora_config import LoRAConfig
from quant.modules import DEFAULT_SKIP, linears
from quant.quantizing import quantize_model

__all__ = ["needs_of", "quantize_with_lora"]


def quantize_with_lora(
    model: nn.Module,
    quantizer: Quantizer,
    config: LoRAConfig,
    init: str | Init = "loftq",
    calibration: Mapping[str, Calibration] | None = None,
    *,
    skip: tuple[str, ...] = DEFAULT_SKIP,
    engine: str = "auto",
) -> nn.Module:
    """A copy of `model` with quantized linear layers under new adapters that start as `init` says.

    Layers that `config` does not adapt are quantized plainly. Fields that the quantizer calls trainable stay frozen.
    Raises ValueError for an unknown `init`, pooled adapters (they have no such start), and as `quantize_model` and
    `add_lora` do; a layer is named.
    """
    chosen = _found(init)
    if config.pooled:
        raise ValueError("a pooled adapter starts at zero: quantize_model(model, ...), then add_lora(model, config)")
    owner: dict[int, str] = {}
    for name, layer in linears(model, skip).items():
        owner.setdefault(id(layer.weight), name)
    first = {name: owner[id(layer.weight)] for name, layer in linears(model, skip).items()}
    targets = frozenset(first.get(name, name) for name in targeted(model, config, skip))
    starts: dict[str, Start] = {}
    starting = _Starting(quantizer, chosen, config, targets, starts.__setitem__)
    out = add_lora(
        quantize_model(model, starting, skip=skip, engine=engine, calibration=calibration), config, skip=skip
    )
    for name, adapter in adapted(out).items():
        start = starts.get(first.get(name, name))
        if start is not None and isinstance(adapter.lora, LoRALayer):
            put(adapter.lora, start)
    return out


def needs_of(quantizer: Quantizer, init: str | Init) -> frozenset[str]:
    """The statistics without which this base and this start cannot be made."""
    return quantizer.needs | _found(init).needs


def _found(init: str | Init) -> Init:
    if isinstance(init, Init):
        return init
    if init not in INITS:
        raise ValueError(f"unknown initialisation {init!r}; known: {', '.join(INITS)}")
    return INITS[init]


def put(lora: LoRALayer, start: Start) -> None:
    """`start` in the factors of `lora`, directions that it does not use as they are."""
    used = start.B.abs().amax(0) > 0
    root = lora.config.scaling**0.5
    with torch.no_grad():
        lora.A[used] = (start.A[used] / root).to(lora.A)
        lora.B[:, used] = (start.B[:, used] / root).to(lora.B)


@dataclass(frozen=True)
class _Starting(Quantizer):
    """`inner`, each layer's base being that of its start; `keep(name, start)` is told of the factors."""

    inner: Quantizer
    init: Init
    config: LoRAConfig
    targets: frozenset[str]
    keep: Callable[[str, Start], None]
    layer: str = ""

    @property
    def family(self) -> str:
        return self.inner.family

    @property
    def needs(self) -> frozenset[str]:
        return needs_of(self.inner, self.init)

    @property
    def trainable(self) -> tuple[str, ...]:
        return self.inner.trainable

    def for_layers(
        self, weights: Mapping[str, Tensor], calibration: Mapping[str, Calibration] | None = None
    ) -> Mapping[str, Quantizer]:
        fitted = self.inner.for_layers(weights, calibration)
        return {
            name: dataclasses.replace(self, inner=quantizer, layer=name) if name in self.targets else quantizer
            for name, quantizer in fitted.items()
        }

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        start = self.init(weight, self.inner, calibration, self.config.rank, self.config.seed_of(self.layer))
        self.keep(self.layer, start)
        return start.base
