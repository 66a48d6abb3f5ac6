"""The order `gradual`: an adapter learns while its base is pruned, more and more, to the share that the method prunes.

    sparsity of a step    the cubic schedule of `quant.gradual`, from 0 to the method's own at 3/4 of the steps

Steps, texts, seeds and learning rate are those of `lora` and `qlora`. The rest of the steps is trained at the final
sparsity, so that what is judged, and stored, is the method's format under an adapter that has seen it. Until the end
the dense weights are held beside the pruned ones: `training_memory` counts both.

Source: Zhu and Gupta 2017, arXiv 1710.01878.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bench.adapted import Adapted, lora_config
from bench.baseline import Setting, fit
from bench.calibration import calibration_of
from bench.data import Batch
from bench.qlora import start_of
from quant import Quantizer, UnsupportedError
from quant.gradual import Cubic, Gradual, sparsity_of
from quant.linear import QuantizedLinear
from quant.lora import LinearWithLoRA, adapted, add_lora
from quant.modules import share

__all__ = ["adapt_gradually", "schedule_of"]

PRUNED_BY = 0.75  # of the steps: the adapter has the others to settle at the final sparsity
CHANGES = 8  # about: each prunes the whole model anew


def schedule_of(final: float, steps: int) -> Cubic:
    """From 0 to `final` in about `CHANGES` jumps within the first `PRUNED_BY` of `steps`."""
    end = max(1, math.floor(PRUNED_BY * steps))
    return Cubic(final, end, every=max(1, end // CHANGES))


def adapt_gradually(setting: Setting, quantizer: Quantizer) -> Adapted:
    """Raises UnsupportedError for a method that prunes no share of the weights."""
    try:
        final = sparsity_of(quantizer)
    except ValueError as error:
        raise UnsupportedError(f"{error}: `gradual` is for those that prune") from error
    module = add_lora(setting.task.wrap(setting.model, setting.seed), lora_config(setting))
    start = start_of(setting, module)
    known = calibration_of(setting, quantizer)
    prune = Gradual(module, quantizer, schedule_of(final, setting.schedule_steps), known)
    step = -1

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        nonlocal step
        step += 1
        _prune(prune, step)
        return setting.task.loss(module, batch)

    prune(prune.schedule.end)  # the memory is that of the last steps, the packed base included
    measured = _Held(share(module), prune.dense)
    training, memory = fit(setting, module, setting.rates.lora, measured=measured, loss=loss)
    training |= {"start": start, "objective": "task", "lr": setting.rates.lora}
    packed = share(module)
    for layer in adapted(packed).values():
        _quantized(layer).engine = "auto"
    return Adapted(module, packed, training=training, training_memory=memory, kin=True)


def _prune(prune: Gradual, step: int) -> None:
    prune(step)
    for layer in prune.layers.values():
        _quantized(layer).engine = "dense"


def _quantized(layer: LinearWithLoRA) -> QuantizedLinear:
    assert isinstance(layer.base, QuantizedLinear)
    return layer.base


class _Held(nn.Module):
    """A model in training beside the dense weights of its layers, which count as what it holds."""

    def __init__(self, inner: nn.Module, dense: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.inner, self.dense = inner, nn.ModuleList(dense.values())

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.inner(*inputs, **named)
