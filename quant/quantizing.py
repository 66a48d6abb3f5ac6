"""A model whose linear layers are quantized, all by one method, each as the method decides for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from quant.core import Calibration, QuantizedTensor, Quantizer, UnsupportedError, checked
from quant.linear import QuantizedLinear
from quant.modules import DEFAULT_SKIP, linears, replace_modules, share

__all__ = ["quantize_model"]


def quantize_model(
    model: nn.Module,
    quantizer: Quantizer,
    *,
    skip: tuple[str, ...] = DEFAULT_SKIP,
    engine: str = "auto",
    calibration: Mapping[str, Calibration] | None = None,
    compute_dtype: torch.dtype | None = None,
) -> nn.Module:
    """A copy of `model` whose linear layers (see `linears`) are `QuantizedLinear`; all else shares memory with it.

    A layer below a LoRA is replaced and its adapter kept. `calibration` (see `quant.calibrate`) is looked up by
    layer name, one layer at a time. Raises ValueError where there is nothing to quantize or a weight cannot be
    quantized, naming the layer.
    """
    chosen = linears(model, skip)
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no linear layer to quantize outside skip={skip}")
    fitted = _fitted(quantizer, chosen, calibration)
    made: dict[int, QuantizedLinear] = {}
    known: dict[int, QuantizedTensor] = {}
    copied = share(model)
    new: dict[str, nn.Module] = {}
    for name, layer in chosen.items():
        if id(layer) not in made:
            if id(layer.weight) not in known:
                with _naming(name):
                    known[id(layer.weight)] = fitted[name].quantize(layer.weight.detach(), _known(calibration, name))
            bias = cast("nn.Parameter | None", copied.get_submodule(name).bias)
            made[id(layer)] = QuantizedLinear(
                known[id(layer.weight)], bias, engine, compute_dtype=compute_dtype, trainable=fitted[name].trainable
            )
        new[name] = made[id(layer)]
    return replace_modules(copied, new)


def _known(calibration: Mapping[str, Calibration] | None, name: str) -> Calibration | None:
    return None if calibration is None or name not in calibration else calibration[name]


def _fitted(
    quantizer: Quantizer, layers: Mapping[str, nn.Linear], calibration: Mapping[str, Calibration] | None
) -> Mapping[str, Quantizer]:
    """`quantizer.for_layers`; where it refuses a weight, the layer is named."""
    weights: dict[int, Tensor] = {}
    named = {n: weights.setdefault(id(layer.weight), layer.weight.detach()) for n, layer in layers.items()}
    try:
        return quantizer.for_layers(named, calibration)
    except (TypeError, ValueError):
        for name, layer in layers.items():
            with _naming(name):
                checked(layer.weight.detach())
        raise


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    try:
        yield
    except UnsupportedError as error:
        raise UnsupportedError(f"layer {layer!r}: {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"layer {layer!r}: {error}") from error
