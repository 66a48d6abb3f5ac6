"""Starts made layer after layer, each for the inputs that reach it through those before, quantized and started already.

With x the inputs of a layer of the original model and z those in the copy under way, a start that knows the errors so
far minimises E ||W x - (Q + B A) z||^2. Without a constraint the best matrix is V = W E[x z^T] E[z z^T]^-1, and what a
constrained one loses beside it is ||(V - Q - B A) E[z z^T]^(1/2)||^2: V is quantized and corrected as in
`quant.init.eora`, with the second moment of z. The second moments are damped towards V = W.
Sources: the correction: Liu et al. 2024 (EoRA), arXiv 2410.21271; inputs of the quantized model against outputs of the
original: Li et al. 2025 (GPTAQ), arXiv 2504.02692.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from quant.core import Calibration, Quantizer
from quant.init.eora import EoRA
from quant.init.model import put
from quant.linear import QuantizedLinear
from quant.lora import LinearWithLoRA, LoRALayer, adapted, add_lora
from quant.lora_config import LoRAConfig
from quant.modules import DEFAULT_SKIP, linears, share

__all__ = ["start_in_sequence"]

DAMPING = 0.01  # of the mean of the diagonal


class _EnoughError(Exception):
    """Raised when the last layer has its start."""


def start_in_sequence(
    model: nn.Module,
    quantizer: Quantizer,
    config: LoRAConfig,
    batch: Any,
    *,
    forward: Callable[[nn.Module, Any], object] = lambda model, batch: model(batch),
    mask: Callable[[Any], Tensor | None] = lambda batch: None,
    rounds: int = 1,
    skip: tuple[str, ...] = DEFAULT_SKIP,
    engine: str = "auto",
) -> nn.Module:
    """A copy of `model` with quantized linear layers under new adapters that make good what came before them.

    `batch` holds all texts at once: each model goes through it in a single pass, and the inputs of every layer of the
    original are held. Its tokens should be several times as many as a layer has columns, or what is made good is the
    errors on these tokens alone. `mask` gives the [m, t] that is true for tokens that count. With more than one of
    `rounds` the base is quantized again beneath the correction. Fields that the quantizer calls trainable stay frozen.
    Raises ValueError for targets other than "all", pooled adapters and quantizers that need gradients.
    """
    if config.pooled or config.targets != "all":
        raise ValueError(f"every linear layer gets a plain adapter here; got targets {config.targets!r}")
    if "fisher" in quantizer.needs:
        raise ValueError("the quantizer needs gradients, which layers in turn do not have; use quantize_with_lora")
    rows = _rows_of(mask(batch))
    inputs, groups = _inputs(share(model).eval(), batch, forward, rows, skip)
    out = add_lora(model, config, skip=skip)
    was_training = out.training
    layers = adapted(out.eval())
    fitted = quantizer.for_layers({name: _dense(layer).weight.detach() for name, layer in layers.items()}, None)

    def start(name: str, z: Tensor) -> None:
        x, z = inputs.pop(name), rows(z)
        moment, across = z.T @ z / len(z), x.T @ z / len(z)
        known = Calibration(second_moment=moment, magnitude=z.abs().mean(0), n_samples=len(z))
        for member in groups[name]:
            base = _dense(layers[member])
            target = best_for(base.weight.detach().float(), across, moment)
            found = EoRA(rounds)(target, fitted[member], known, config.rank, config.seed_of(member))
            layers[member].base = QuantizedLinear(found.base, base.bias, engine).requires_grad_(False)
            put(cast("LoRALayer", layers[member].lora), found)
        if not inputs:
            raise _EnoughError

    _watch({name: layers[name] for name in groups}, start, lambda: forward(out, batch))
    return out.train(was_training)


def best_for(weight: Tensor, across: Tensor, moment: Tensor) -> Tensor:
    """V [n, k] with V E[z z^T] = W E[x z^T] for `weight` W, `across` E[x z^T] and `moment` E[z z^T], damped to W."""
    ridge = DAMPING * moment.diagonal().mean().clamp(min=1e-20)
    eye = ridge * torch.eye(len(moment), device=moment.device)
    found: Tensor = torch.linalg.solve(moment + eye, (weight @ (across + eye)).T).T
    return found.contiguous()


def _dense(layer: LinearWithLoRA) -> nn.Linear:
    return cast("nn.Linear", layer.base)


def _rows_of(counted: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What takes the rows [m, k] that count out of the input of a layer."""

    def rows(x: Tensor) -> Tensor:
        if counted is not None and counted.shape == x.shape[:-1]:
            return x[counted.bool()].float()
        return x.reshape(-1, x.shape[-1]).float()

    return rows


def _inputs(
    model: nn.Module,
    batch: Any,
    forward: Callable[[nn.Module, Any], object],
    rows: Callable[[Tensor], Tensor],
    skip: tuple[str, ...],
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The inputs [m, k] of every run of layers that read the same tensor, and those layers, by the first of them."""
    layers = linears(model, skip)
    inputs: dict[str, Tensor] = {}
    groups: dict[str, list[str]] = {}
    last: list[Tensor] = []

    def see(name: str, x: Tensor) -> None:
        if last and last[0] is x:
            groups[next(reversed(groups))].append(name)
        else:
            inputs[name], groups[name] = rows(x), [name]
        last[:] = [x]

    _watch(layers, see, lambda: forward(model, batch))
    return inputs, groups


def _watch(layers: dict[str, Any], see: Callable[[str, Tensor], None], run: Callable[[], object]) -> None:
    """Call `run`, and `see(name, x)` before each of `layers` in it; `_EnoughError` ends it."""
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: see(name, args[0])) for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            run()
    except _EnoughError:
        pass
    finally:
        for handle in handles:
            handle.remove()
