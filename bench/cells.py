"""One cell of the grid, executed: the groups of its record that follow from running it.

    untouched, features, prompt, full, lora   memory, training, training_memory, accuracy
    beneath                                   memory (with the file and the entropy of the codes), accuracy, weights
    qlora                                     memory, training, training_memory, accuracy
    merge                                     memory, accuracy
    speed                                     memory, training_memory, speed

The model, the baseline's adapter and its outputs stay in the process for the cells that follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bench.adapt import ADAPT, Adapted, adapt
from bench.baseline import Setting, baseline_outputs, setting_of
from bench.measure.memory import static_memory
from bench.measure.weights import weight_errors
from bench.protocol import Protocol
from bench.schema import Cell
from bench.speed_cell import speed_cell
from bench.tasks import Outputs
from bench.tasks.classification import Classification
from quant import METHODS, Quantizer
from quant.linear import QuantizedLinear
from quant.modules import linears

__all__ = ["execute"]

Record = dict[str, Any]


def execute(cell: Cell, protocol: Protocol, device: str = "cpu") -> Record:
    """The groups of the record of `cell` under `protocol`, run on `device` ("cpu", "cuda"): see `bench.schema`.

    Raises ValueError for unknown names and a task of the other kind, UnsupportedError when the method cannot store a
    weight or the model lacks what the order trains, ArithmeticError when a loss or an output is not finite.
    """
    if cell.method not in METHODS:
        raise ValueError(f"unknown method {cell.method!r}; known: {', '.join(METHODS)}")
    quantizer = METHODS[cell.method]
    setting = setting_of(cell.model, cell.task, protocol, cell.seed, device)
    head = {"family": quantizer.family, "settings": quantizer.settings(), "label": cell.method}
    if cell.order == "speed":
        return head | speed_cell(setting, quantizer)
    return head | _judged(cell.order, setting, quantizer)


def _judged(order: str, setting: Setting, quantizer: Quantizer) -> Record:
    adapted = adapt(order, setting, quantizer)
    out: Record = {"accuracy": _accuracy(setting, adapted)}
    if adapted.quantized is not None:
        out["weights"] = _weights(setting, adapted.quantized, adapted.decoded)
    whole = order == "beneath"
    out["memory"] = static_memory(adapted.packed or adapted.module, save=whole, entropy=whole)
    if adapted.training is not None:
        out["training"] = adapted.training
        out["training_memory"] = adapted.training_memory
    return out


def _accuracy(setting: Setting, adapted: Adapted) -> Record:
    base = baseline_outputs(setting, lambda: _baseline(setting))
    task, model, p = setting.task, setting.model, setting.protocol
    outputs: dict[str, Tensor] = dict(task.outputs(adapted.module, model, p, base if adapted.kin else None))
    if adapted.plain is not None and _judges_embeddings(setting):
        outputs["embeddings"] = task.embeddings(adapted.plain, model, p)  # type: ignore[attr-defined]
    return task.figures(outputs, base, p, adapted.kin)


def _baseline(setting: Setting) -> Outputs:
    """Outputs of the LoRA on the unquantized weights, and the embeddings of the un-tuned model."""
    module = ADAPT["lora"](setting, METHODS["fp32"]).module
    task, model, p = setting.task, setting.model, setting.protocol
    outputs = dict(task.outputs(module, model, p, None, keep=True))
    if _judges_embeddings(setting):
        outputs["embeddings"] = task.embeddings(task.wrap(model, setting.seed), model, p)  # type: ignore[attr-defined]
    return outputs


def _judges_embeddings(setting: Setting) -> bool:
    return isinstance(setting.task, Classification) and setting.task.cosine


def _weights(setting: Setting, quantized: nn.Module, decoded: Mapping[str, Tensor] | None) -> Record:
    original = linears(setting.task.wrap(setting.model, setting.seed), setting.protocol.skip)
    layers = {name: m for name, m in quantized.named_modules() if isinstance(m, QuantizedLinear)}
    pairs = ((name, original[name].weight.detach(), m.weight_qt) for name, m in layers.items())
    return weight_errors(pairs, decoded=decoded)
