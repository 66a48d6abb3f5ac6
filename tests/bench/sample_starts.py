"""Names of layers, and made-up groups of records of new adapters on quantized bases: see `sample_records` beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LINEARS = {
    "minilm": [
        f"encoder.layer.{i}.{n}"
        for i in range(6)
        for n in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
    ],
    "smollm2": [
        f"model.layers.{i}.{n}"
        for i in range(30)
        for n in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    ],
}

STARTS = ("loftq", "eora", "qa-lora", "distill")


def start(order: str, error: float, accuracy: Callable[[float], dict[str, Any]]) -> dict[str, Any]:
    """`training.start`; `accuracy` makes metrics from a squared error."""
    nearer = {"loftq": 0.9, "eora": 0.7}.get(order, 1.0) * error
    return accuracy(nearer**2) | {"relative_error": nearer}


def audit(order: str, error: float, layers: list[str], accuracy: Callable[[float], dict[str, Any]]) -> dict[str, Any]:
    """`merge_audit` of a model with these `layers`."""
    sizes = {"original": error, "dequantized": 0.0016, "requantized": 0.1}
    sizes |= {"zeros": 7e-8, "zeros16": 5e-4} if order == "qa-lora" else {}
    return {
        way: {
            "relative_error": size,
            "layers": {name: size * (0.9 + 0.2 * i / len(layers)) for i, name in enumerate(layers)},
            "metrics": accuracy(size**2),
        }
        for way, size in sizes.items()
    }
