"""Low-rank adaptation over any linear layer: y = base(x) + (alpha / rank) * B(A(dropout(x))).

A [r, k] starts as in Kaiming et al. with a = sqrt(5), B [n, r] as zeros, so the adapted layer starts as the base.
Source: Hu et al. 2021, arXiv 2106.09685; quantized base: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from quant.core import Quantizer
from quant.linear import QuantizedLinear
from quant.lora_config import LoRAConfig
from quant.modules import DEFAULT_SKIP, linears, replace_modules, share, skipped
from quant.pooled import PooledLoRALayer

__all__ = [
    "LinearWithLoRA",
    "LoRAConfig",
    "LoRALayer",
    "LoRALinear",
    "add_lora",
    "lora_parameters",
    "merge_lora",
    "quantize_adapter",
]


class LoRALayer(nn.Module):
    """The two low-rank matrices of an adapter: x [..., k] -> (alpha / rank) * x A^T B^T [..., n], in float32."""

    def __init__(self, in_features: int, out_features: int, config: LoRAConfig, name: str = "") -> None:
        super().__init__()
        self.config = config
        a = torch.empty(config.rank, in_features)
        self.A = nn.Parameter(nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=config.generator(name)))
        self.B = nn.Parameter(torch.zeros(out_features, config.rank))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [r, k] and B [n, r] as the layer uses them."""
        if self.config.quantizer is None:
            return self.A, self.B
        return _seen(self.A, self.config.quantizer), _seen(self.B, self.config.quantizer)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.factors()
        inner = nn.functional.dropout(x.to(a.dtype), self.config.dropout, self.training)
        return ((inner @ a.T) @ b.T * self.config.scaling).to(x.dtype)

    @property
    def drops(self) -> bool:
        """Whether dropout acts now."""
        return self.training and self.config.dropout > 0

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha / rank) * x A^T [..., r] and B [n, r], whose product is added to the base's; without dropout."""
        a, b = self.factors()
        return x.to(a.dtype) @ a.T * self.config.scaling, b

    def delta(self) -> Tensor:
        """What the adapter adds to the weight, [n, k] float32."""
        a, b = self.factors()
        return (b.float() @ a.float()) * self.config.scaling


class QuantizedLoRALayer(nn.Module):
    """An adapter whose two factors are quantized: W_hat = W_q + (alpha / rank) B_hat A_hat. Frozen."""

    def __init__(self, config: LoRAConfig, a: QuantizedLinear, b: QuantizedLinear) -> None:
        super().__init__()
        self.config, self.A, self.B = config, a, b

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.B(self.A(x.float())) * self.config.scaling
        return y.to(x.dtype)

    def delta(self) -> Tensor:
        """What the adapter adds to the weight, [n, k] float32."""
        return (self.B.weight_qt.decode() @ self.A.weight_qt.decode()) * self.config.scaling


class LinearWithLoRA(nn.Module):
    """A frozen linear layer, dense or quantized, with an adapter beside it."""

    def __init__(self, base: nn.Linear | QuantizedLinear, config: LoRAConfig, name: str = "") -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora: LoRALayer | QuantizedLoRALayer | PooledLoRALayer = _layer(base, config, name)
        self.lora.to(base.device if isinstance(base, QuantizedLinear) else base.weight.device)
        self.train(base.training)
        self._unmerged: Tensor | None = None

    @property
    def in_features(self) -> int:
        """Features of x."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Features of y."""
        return self.base.out_features

    @property
    def merged(self) -> bool:
        """Whether the base holds the sum now, so that only the base runs."""
        return self._unmerged is not None

    def forward(self, x: Tensor) -> Tensor:
        both = None
        if isinstance(self.base, QuantizedLinear) and isinstance(self.lora, LoRALayer) and not self.lora.drops:
            both = self.base.with_update(x, self.lora.halves)
        if both is not None:
            return both
        y: Tensor = self.base(x)
        return y if self.merged else y + self.lora(x)

    def merged_weight(self) -> Tensor:
        """The weight that acts on x, [n, k] float32: the (dequantized) base plus the adapter."""
        if isinstance(self.base, QuantizedLinear):
            return self.base.weight_qt.decode() + self.lora.delta().detach()
        weight = self.base.weight.detach().float()
        return weight if self.merged else weight + self.lora.delta().detach()

    def merge(self) -> None:
        """Put the sum into the dense base, in place; raises ValueError over a quantized one (use `merged_weight`)."""
        if isinstance(self.base, QuantizedLinear):
            raise ValueError("a quantized base cannot hold the sum; use merged_weight() or merge_lora(model)")
        if not self.merged:
            before = self.base.weight
            self.base.weight = nn.Parameter(self.merged_weight().to(before.dtype), requires_grad=False)
            self._unmerged = before.detach()

    def unmerge(self) -> None:
        """Undo `merge` exactly: the base gets its own weight back, not the sum less the adapter."""
        if self._unmerged is not None and not isinstance(self.base, QuantizedLinear):
            self.base.weight = nn.Parameter(self._unmerged, requires_grad=False)
            self._unmerged = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LinearWithLoRA:
        """Move and cast the weight that `unmerge` puts back along with the rest."""
        if self._unmerged is not None:
            self._unmerged = fn(self._unmerged)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


LoRALinear = LinearWithLoRA


def _layer(base: nn.Linear | QuantizedLinear, config: LoRAConfig, name: str) -> LoRALayer | PooledLoRALayer:
    if not config.pooled:
        return LoRALayer(base.in_features, base.out_features, config, name)
    if not isinstance(base, QuantizedLinear):
        raise ValueError(f"layer {name!r}: a pooled adapter needs a quantized base; quantize_model(model, ...) first")
    return PooledLoRALayer(base.weight_qt, config, config.generator(name))


def _seen(factor: Tensor, quantizer: Quantizer) -> Tensor:
    """`factor` as quantized, with the gradient of the identity."""
    return factor + (quantizer.quantize(factor.detach()).decode() - factor).detach()


# --- models -------------------------------------------------------------------------------------------------------


def adaptable(model: nn.Module, skip: tuple[str, ...] = DEFAULT_SKIP) -> dict[str, nn.Linear | QuantizedLinear]:
    """The layers that can carry an adapter, by qualified name: `linears` and the quantized ones."""
    dense = linears(model, skip)
    return {
        name: module
        for name, module in model.named_modules()
        if name in dense or (isinstance(module, QuantizedLinear) and not skipped(name, skip))
    }  # type: ignore[misc]


def adapted(model: nn.Module) -> dict[str, LinearWithLoRA]:
    """The layers that carry an adapter, by qualified name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LinearWithLoRA)}


def add_lora(model: nn.Module, config: LoRAConfig, *, skip: tuple[str, ...] = DEFAULT_SKIP) -> nn.Module:
    """A copy of `model`, sharing its memory, in which only new adapters (and `also_train`) are trainable.

    Parameters under `also_train` are the copy's own. Raises ValueError when a target names no layer, or when the
    model has adapters already.
    """
    if adapted(model):
        raise ValueError("the model has adapters already; merge_lora(model) first")
    layers = targeted(model, config, skip)
    copied = share(model).requires_grad_(False)
    new = {n: LinearWithLoRA(copied.get_submodule(n), config, n) for n in layers}  # type: ignore[arg-type]
    out = replace_modules(copied, new)
    for name in config.also_train:
        own(out, name)
    return out


def targeted(model: nn.Module, config: LoRAConfig, skip: tuple[str, ...]) -> list[str]:
    """The names of the layers that `config` adapts; raises ValueError when there are none or a target is no layer."""
    layers = list(adaptable(model, skip))
    if config.targets != "all":
        wanted = {t: [n for n in layers if n == t or n.endswith(f".{t}")] for t in config.targets}
        if lost := [t for t, found in wanted.items() if not found]:
            raise ValueError(f"targets {lost} name no linear layer; there are: {', '.join(layers)}")
        chosen = {n for found in wanted.values() for n in found}
        layers = [n for n in layers if n in chosen]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer to adapt outside skip={skip}")
    return layers


def own(model: nn.Module, end: str) -> None:
    """Give the modules whose name ends in `end` their own trainable parameters; `model` is changed."""
    found = [m for name, m in model.named_modules() if name == end or name.endswith(f".{end}")]
    if not found:
        raise ValueError(f"also_train names {end!r}, which is no module of the model")
    for module in (m for top in found for m in top.modules()):
        for name, p in list(module.named_parameters(recurse=False)):
            if p.dtype.is_floating_point:
                setattr(module, name, nn.Parameter(p.detach().clone()))


def lora_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of the adapters."""
    for layer in adapted(model).values():
        yield from layer.lora.parameters()


def merge_lora(model: nn.Module) -> nn.Module:
    """A copy of `model` with dense layers in place of the adapted ones, holding base plus adapter.

    Over a quantized base the dense weight is the dequantized base plus the adapter: quantize it again to get its
    memory back.
    """
    copied = share(model)
    new: dict[str, nn.Module] = {}
    for name, layer in adapted(copied).items():
        dtype = layer.base.weight_qt.dtype if isinstance(layer.base, QuantizedLinear) else layer.base.weight.dtype
        weight = layer.merged_weight().to(dtype)
        dense = nn.Linear(layer.in_features, layer.out_features, layer.base.bias is not None, device="meta")
        dense.weight = nn.Parameter(weight)
        dense.register_parameter("bias", layer.base.bias)
        new[name] = dense
    return replace_modules(copied, new)


def quantize_adapter(model: nn.Module, quantizer: Quantizer | None = None) -> nn.Module:
    """A copy of `model` whose adapters' factors are quantized, by default as their `LoRAConfig.quantizer` says."""
    copied = share(model)
    layers = adapted(copied)
    if not layers:
        raise ValueError("the model has no adapters; add_lora(model, config) first")
    for name, layer in layers.items():
        how = quantizer or layer.lora.config.quantizer
        if how is None or not isinstance(layer.lora, LoRALayer):
            raise ValueError(f"layer {name!r}: its factors are quantized or pooled, or no quantizer was given")
        layer.lora = QuantizedLoRALayer(
            layer.lora.config,
            QuantizedLinear(how.quantize(layer.lora.A.detach()), None),
            QuantizedLinear(how.quantize(layer.lora.B.detach()), None),
        )
    return copied
