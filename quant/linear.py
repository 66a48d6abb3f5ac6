"""A linear layer over a quantized weight.

The stored tensors are plain parameters without gradient, named as in `QuantizedTensor.stored()` with dots as double
underscores: FSDP, `state_dict` and safetensors see nothing unusual. None of them is called `weight`: a loader that
does not know the format fails instead of reading codes as weights. Casting the module leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from quant.core import QuantizedTensor, from_config
from quant.engines import ENGINES, Prepared, choose
from quant.engines.base import Traced
from quant.engines.choice import check_name
from quant.engines.triton import DTYPES, Triton
from quant.formats import Composed
from quant.product import Product

__all__ = ["QuantizedLinear"]

TRITON = cast("Triton", ENGINES["triton"])


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
        self._fused: Prepared | None = None  # by the engine "triton", for every dtype
        self._last = ""
        self._arrived()

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
            wanted = self.engine in ("auto", "triton") and TRITON.serves(self.device)
            if wanted and not TRITON.refuses(self._weight, DTYPES[0], self.device):
                self._fused = TRITON.prepare(self._weight, DTYPES[0])

    def _arrived(self) -> None:
        """Make a weight that is on a GPU ready for its kernels now: code that is compiled later cannot."""
        if TRITON.serves(self.device):
            self._refresh()

    def _forget(self) -> None:
        self._state = ()
        self._prepared, self._fused = {}, None
        self._last = ""

    # --- the product --------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features] in the dtype of x."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x has {x.shape[-1]} features, the layer takes {self.in_features}")
        if torch.compiler.is_compiling():
            fused = self._fused_for(x)
            if fused is None:
                outside: Tensor = self._outside_of_graphs(x)
                return outside
            return self._biased(fused.matmul(x.to(self.compute_dtype or x.dtype)).to(x.dtype))
        learned = [self.stored()[name] for name in self.trainable]
        y: Tensor = Product.apply(x, self, *learned)  # type: ignore[no-untyped-call]
        return self._biased(y)

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def _outside_of_graphs(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def _biased(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def with_update(self, x: Tensor, halves: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor | None:
        """x W^T + inner [..., r] b [n, r]^T + bias in one product, (inner, b) = `halves(x)`; None where no path can."""
        fused = self._fused_for(x) if TRITON.serves(x.device) else None
        if fused is None:
            return None
        return self._biased(fused.adapted(x.to(self.compute_dtype or x.dtype), *halves(x)).to(x.dtype))

    def _fused_for(self, x: Tensor) -> Traced | None:
        """The weight as the arguments of the kernels that take an update and can be traced, where they take this x.

        A compiled graph uses what was made ready when the weight came to the device or was loaded.
        """
        if self.trainable or self.engine not in ("auto", "triton") or (self.compute_dtype or x.dtype) not in DTYPES:
            return None
        if not torch.compiler.is_compiling():
            self._refresh()
            self._last = "triton" if isinstance(self._fused, Traced) else self._last
        return self._fused if isinstance(self._fused, Traced) else None

    def _on_kernels(self, device: torch.device, dtype: torch.dtype) -> bool:
        return self._fused is not None and dtype in DTYPES and TRITON.serves(device)

    def product(self, x: Tensor) -> Tensor:
        """x W^T without a graph: [..., in_features] -> [..., out_features]."""
        self._refresh()
        flat = x.reshape(-1, self.in_features)
        dtype = self.compute_dtype or x.dtype
        if self._on_kernels(x.device, dtype):
            self._last = "triton"
        else:
            self._last = choose(self.engine, self._weight, dtype, x.device, flat.shape[0])
        y = self._ready(self._last, dtype).matmul(flat.to(dtype))
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def transposed(self, dy: Tensor) -> Tensor:
        """dy W, the gradient of x: [..., out_features] -> [..., in_features]; by an engine that can."""
        self._refresh()
        flat = dy.reshape(-1, self.out_features)
        dtype = self.compute_dtype or dy.dtype
        name = self.engine if self.engine in ("dense", "reference") else "tiled"
        name = "around" if name == "tiled" and isinstance(self._weight, Composed) else name
        dx = self._ready("triton" if self._on_kernels(dy.device, dtype) else name, dtype).transposed(flat.to(dtype))
        return dx.to(dy.dtype).view(*dy.shape[:-1], self.in_features)

    def _ready(self, name: str, dtype: torch.dtype) -> Prepared:
        if name == "triton" and self._fused is not None:
            return self._fused
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
        made = [*self._prepared.values(), *([] if self._fused is None else [self._fused])]
        return sum(p.nbytes for p in made)

    # --- being moved, cast, copied ------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Move the stored tensors with the module but keep their dtypes: cast scales are another weight."""
        self._forget()

        def kept(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if t is self.bias or moved.dtype == t.dtype else t.to(moved.device)

        super()._apply(kept, recurse)  # type: ignore[no-untyped-call]
        self._arrived()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._arrived()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_state": (), "_prepared": {}, "_fused": None, "_last": "", "_weight": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._arrived()

    def extra_repr(self) -> str:
        weight = self.weight_qt
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"format={weight.format}, bits_per_weight={weight.bits_per_weight:.3f}, engine={self.engine}"
        )


def _version(t: Tensor) -> int:
    """Counts the writes to `t`; a tensor made in inference mode does not count them and is taken as constant."""
    return 0 if t.is_inference() else t._version


def _attribute(name: str) -> str:
    return name.replace(".", "__")


def weight_device(weight: QuantizedTensor) -> torch.device:
    """Where a quantized weight is stored."""
    return next(iter(weight.stored().values())).device
