"""A linear layer over a quantized weight, and a model whose linear layers are such.

The stored tensors are plain parameters without gradient, named as in `QuantizedTensor.stored()` with dots as double
underscores: FSDP, `state_dict` and safetensors see nothing unusual. None of them is called `weight`: a loader that
does not know the format fails instead of reading codes as weights. Casting the module leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from quant.core import Calibration, QuantizedTensor, Quantizer, UnsupportedError, checked, from_config
from quant.engines import ENGINES, Prepared, choose
from quant.engines.choice import check_name
from quant.engines.triton import Fused
from quant.modules import DEFAULT_SKIP, linears, replace_modules, share

__all__ = ["QuantizedLinear", "quantize_model"]

TRACEABLE = ("affine", "codebook", "fixed-codebook", "reshaped")  # formats whose checks read no values


class QuantizedLinear(nn.Module):
    """y = x W^T + bias with W [n, k] in quantized form; the gradient reaches x, and the fields named in `trainable`.

    `engine` names the path ("auto": the fastest exact one for the dtype at hand), `compute_dtype` the dtype x is cast
    to before the product (default: its own). y has the dtype of x.
    """

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: Tensor | None,
        engine: str = "auto",
        *,
        compute_dtype: torch.dtype | None = None,
        trainable: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        check_name(engine)
        self.out_features, self.in_features = weight.shape
        self.engine, self.compute_dtype, self.trainable = engine, compute_dtype, trainable
        self.config = weight.config()
        self.stored_names = tuple(weight.stored())
        for name, tensor in weight.stored().items():
            learns = name in trainable
            self.register_parameter(_attribute(name), nn.Parameter(tensor.detach(), requires_grad=learns))
        if missing := set(trainable) - set(self.stored_names):
            raise ValueError(
                f"trainable fields {sorted(missing)} are not stored; stored: {', '.join(self.stored_names)}"
            )
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise ValueError(f"bias must be [{self.out_features}], got {list(bias.shape)}")
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)
        if engine not in ("auto", "triton"):
            choose(engine, weight, compute_dtype or weight.dtype, weight_device(weight), 1)
        self._state: tuple[Any, ...] = ()
        self._prepared: dict[tuple[str, torch.dtype], Prepared] = {}
        self._last = ""

    # --- the weight ---------------------------------------------------------------------------------------------

    def stored(self) -> dict[str, nn.Parameter]:
        """The parameters that hold the weight, by their name in `QuantizedTensor.stored()`."""
        return {name: getattr(self, _attribute(name)) for name in self.stored_names}

    @property
    def weight_qt(self) -> QuantizedTensor:
        """The quantized weight, sharing memory with the parameters."""
        self._refresh()
        return self._weight

    @property
    def device(self) -> torch.device:
        """Where the weight is stored."""
        device: torch.device = next(iter(self.stored().values())).device
        return device

    def _refresh(self) -> None:
        """Rebuild the weight, and drop what was derived from it, if a parameter was replaced or written to."""
        state = tuple((p.data_ptr(), _version(p), p.device) for p in self.stored().values())
        if state != self._state:
            self._forget()
            self._weight = from_config(self.config, {name: p.detach() for name, p in self.stored().items()})
            self._state = state

    def _forget(self) -> None:
        self._state = ()
        self._prepared = {}
        self._last = ""

    # --- the product --------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features] in the dtype of x."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x has {x.shape[-1]} features, the layer takes {self.in_features}")
        if torch.compiler.is_compiling() and (ready := self._traced(x)) is not None:
            return self._biased(ready.matmul(x.to(self.compute_dtype or x.dtype)).to(x.dtype))
        learned = [self.stored()[name] for name in self.trainable]
        y: Tensor = _Product.apply(x, self, *learned)  # type: ignore[no-untyped-call]
        return self._biased(y)

    def _biased(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def adds_updates(self, x: Tensor) -> bool:
        """Whether the path for this x can add a low-rank update within the product, see `adapted`."""
        if torch.compiler.is_compiling():
            return self._traced(x) is not None
        self._refresh()
        rows = x.numel() // self.in_features
        dtype = self.compute_dtype or x.dtype
        return not self.trainable and choose(self.engine, self._weight, dtype, x.device, rows) == "triton"

    def adapted(self, x: Tensor, inner: Tensor, b: Tensor) -> Tensor:
        """x W^T + inner [..., r] b [n, r]^T + bias in one product; only where `adds_updates`."""
        dtype = self.compute_dtype or x.dtype
        if torch.compiler.is_compiling():
            ready = self._traced(x)
        else:
            self._last, ready = "triton", self._ready("triton", dtype)
        assert isinstance(ready, Fused)
        return self._biased(ready.adapted(x.to(dtype), inner, b).to(x.dtype))

    def _traced(self, x: Tensor) -> Prepared | None:
        """The weight ready for a compiled graph, which holds no cache of ours; None where only plain paths take it."""
        if self.engine not in ("auto", "triton") or self.trainable or self.config["format"] not in TRACEABLE:
            return None
        weight = from_config(self.config, self.stored())
        dtype = self.compute_dtype or x.dtype
        if ENGINES["triton"].refuses(weight, dtype, x.device):
            return None
        return ENGINES["triton"].prepare(weight, dtype)

    def product(self, x: Tensor) -> Tensor:
        """x W^T without a graph: [..., in_features] -> [..., out_features]."""
        self._refresh()
        flat = x.reshape(-1, self.in_features)
        dtype = self.compute_dtype or x.dtype
        self._last = choose(self.engine, self._weight, dtype, x.device, flat.shape[0])
        y = self._ready(self._last, dtype).matmul(flat.to(dtype))
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def transposed(self, dy: Tensor) -> Tensor:
        """dy W, the gradient of x: [..., out_features] -> [..., in_features]; by an engine that can."""
        self._refresh()
        flat = dy.reshape(-1, self.out_features)
        dtype = self.compute_dtype or dy.dtype
        name = self.engine if self.engine in ("dense", "reference") else "tiled"
        if self.engine in ("auto", "triton") and not ENGINES["triton"].refuses(self._weight, dtype, dy.device):
            name = "triton"
        dx = self._ready(name, dtype).transposed(flat.to(dtype))
        return dx.to(dy.dtype).view(*dy.shape[:-1], self.in_features)

    def _ready(self, name: str, dtype: torch.dtype) -> Prepared:
        name = "tiled" if name == "lut" else name  # one preparation serves both
        if (name, dtype) not in self._prepared:
            self._prepared[name, dtype] = ENGINES[name].prepare(self._weight, dtype)
        return self._prepared[name, dtype]

    @property
    def engine_name(self) -> str:
        """The path that ran last; before the first product, the one that one row of x would take."""
        dtype = self.compute_dtype or self.weight_qt.dtype
        return self._last or choose(self.engine, self.weight_qt, dtype, self.device, 1)

    @property
    def cache_nbytes(self) -> int:
        """Bytes kept beside the stored ones: repacked, decoded or dense copies that the engines made."""
        return sum(p.nbytes for p in self._prepared.values())

    # --- being moved, cast, copied ------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Move the stored tensors with the module but keep their dtypes: cast scales are another weight."""
        self._forget()

        def kept(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if t is self.bias or moved.dtype == t.dtype else t.to(moved.device)

        super()._apply(kept, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_state": (), "_prepared": {}, "_last": "", "_weight": None}

    def extra_repr(self) -> str:
        weight = self.weight_qt
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"format={weight.format}, bits_per_weight={weight.bits_per_weight:.3f}, engine={self.engine}"
        )


class _Product(torch.autograd.Function):
    """x W^T, keeping no dense weight: the backward pass dequantizes again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear, *learned: Tensor) -> Tensor:
        ctx.layer, ctx.learned = layer, learned
        ctx.save_for_backward(x if any(t.requires_grad for t in learned) else None)
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        layer: QuantizedLinear = ctx.layer
        dx = layer.transposed(dy) if ctx.needs_input_grad[0] else None
        grads: list[Tensor | None] = [None] * len(ctx.learned)
        wanted = [i for i, t in enumerate(ctx.learned) if ctx.needs_input_grad[2 + i]]
        if wanted:
            (x,) = ctx.saved_tensors
            dw = dy.reshape(-1, layer.out_features).float().T @ x.reshape(-1, layer.in_features).float()
            with torch.enable_grad():
                copies = {layer.trainable[i]: ctx.learned[i].detach().requires_grad_() for i in wanted}
                stored = {name: p.detach() for name, p in layer.stored().items()} | copies
                w = from_config(layer.config, stored).decode()
                found = torch.autograd.grad(w, list(copies.values()), dw)
            for i, grad in zip(wanted, found, strict=True):
                grads[i] = grad
        return dx, None, *grads


def _version(t: Tensor) -> int:
    """Counts the writes to `t`; a tensor made in inference mode does not count them and is taken as constant."""
    return 0 if t.is_inference() else t._version


def _attribute(name: str) -> str:
    return name.replace(".", "__")


def weight_device(weight: QuantizedTensor) -> torch.device:
    """Where a quantized weight is stored."""
    return next(iter(weight.stored().values())).device


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

    A layer below a LoRA is replaced and its adapter kept. `calibration` is looked up by layer name. Raises
    ValueError where there is nothing to quantize or a weight cannot be quantized, naming the layer.
    """
    chosen = linears(model, skip)
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no linear layer to quantize outside skip={skip}")
    fitted = _fitted(quantizer, chosen)
    made: dict[int, QuantizedLinear] = {}
    known: dict[int, QuantizedTensor] = {}
    copied = share(model)
    new: dict[str, nn.Module] = {}
    for name, layer in chosen.items():
        if id(layer) not in made:
            if id(layer.weight) not in known:
                with _naming(name):
                    known[id(layer.weight)] = fitted.quantize(layer.weight.detach(), (calibration or {}).get(name))
            bias = cast("nn.Parameter | None", copied.get_submodule(name).bias)
            made[id(layer)] = QuantizedLinear(
                known[id(layer.weight)], bias, engine, compute_dtype=compute_dtype, trainable=fitted.trainable
            )
        new[name] = made[id(layer)]
    return replace_modules(copied, new)


def _fitted(quantizer: Quantizer, layers: Mapping[str, nn.Linear]) -> Quantizer:
    """`quantizer.for_model`; where it refuses a weight, the layer is named."""
    try:
        return quantizer.for_model([layer.weight.detach() for layer in layers.values()])
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
