"""One cell of the grid, executed: the groups of its record that follow from running it.

    untouched, features, prompt, full, lora   memory, training, training_memory, accuracy
    beneath                                   memory (with the file and the entropy of the codes), accuracy, weights
    qlora, loftq, ..., chained, distill       memory, training (with its start), training_memory, accuracy
    gradual                                   as qlora; training_memory holds the dense weights too
    qlora, qa-lora                            also merge_audit
    merge                                     memory, accuracy
    speed                                     memory, training_memory, speed

The model, the baseline's adapter and its outputs stay in the process for the cells that follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bench.adapt import adapt
from bench.baseline import Setting, setting_of
from bench.judge import judged
from bench.measure.memory import static_memory
from bench.measure.weights import weight_errors
from bench.protocol import Protocol
from bench.schema import Cell
from bench.speed_cell import speed_cell
from quant import Quantizer
from quant.linear import QuantizedLinear
from quant.modules import linears
from quant.peers import find_method

__all__ = ["execute"]

Record = dict[str, Any]


def execute(cell: Cell, protocol: Protocol, device: str = "cpu") -> Record:
    """The groups of the record of `cell` under `protocol`, run on `device` ("cpu", "cuda"): see `bench.schema`.

    Raises ValueError for unknown names and a task of the other kind, UnsupportedError when the method cannot store a
    weight or the model lacks what the order trains, ArithmeticError when a loss or an output is not finite.
    """
    quantizer = find_method(cell.method)
    setting = setting_of(cell.model, cell.task, protocol, cell.seed, device)
    head = {"family": quantizer.family, "settings": quantizer.settings(), "label": cell.method}
    if cell.order == "speed":
        return head | speed_cell(setting, quantizer)
    return head | _judged(cell.order, setting, quantizer)


def _judged(order: str, setting: Setting, quantizer: Quantizer) -> Record:
    adapted = adapt(order, setting, quantizer)
    out: Record = {"accuracy": judged(setting, adapted.module, adapted.kin, adapted.plain, adapted.said)}
    if adapted.quantized is not None:
        out["weights"] = _weights(setting, adapted.quantized, adapted.decoded)
    whole = order == "beneath"
    out["memory"] = static_memory(adapted.packed or adapted.module, save=whole, entropy=whole)
    if adapted.training is not None:
        out["training"] = adapted.training
        out["training_memory"] = adapted.training_memory
    if adapted.merge_audit is not None:
        out["merge_audit"] = adapted.merge_audit
    return out


def _weights(setting: Setting, quantized: nn.Module, decoded: Mapping[str, Tensor] | None) -> Record:
    original = linears(setting.task.wrap(setting.model, setting.seed), setting.protocol.skip)
    layers = {name: m for name, m in quantized.named_modules() if isinstance(m, QuantizedLinear)}
    pairs = ((name, original[name].weight.detach(), m.weight_qt) for name, m in layers.items())
    return weight_errors(pairs, decoded=decoded)
