"""What a quantized weight is: stored tensors, and a configuration that says how to read them.

A `QuantizedTensor` is a frozen dataclass. Its fields that hold a tensor, or another `QuantizedTensor`, are *stored*;
all other fields are its configuration. Everything else follows from that by recursion: the bytes, the state dict,
the file format, moving between devices. Double quantization and prune-then-quantize are therefore no special case:
a stored field (the scale, the kept values) is itself quantized.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["FORMATS", "PARTS", "QuantizedTensor", "from_config"]

PARTS = (
    "codes",
    "scales",
    "zeros",
    "levels",
    "second_level",
    "mask",
    "unquantized",
    "constants",  # per-tensor constants: fixed tables, the offset of double quantization; stated apart
)

FORMATS: dict[str, type[QuantizedTensor]] = {}


@dataclass(frozen=True, eq=False)
class QuantizedTensor(ABC):
    """A weight [n, k] in the form in which it is stored.

    `shape` is [n, k] of the weight it stands for, `dtype` that weight's dtype. Subclasses add stored fields (tensors
    or nested quantized tensors, named in `stored_parts` with the part of `PARTS` they are counted under) and
    configuration fields (ints, strings). A part of "inherit" counts a nested tensor's parts as its own.
    """

    shape: tuple[int, int]
    dtype: torch.dtype

    format: ClassVar[str] = ""
    stored_parts: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, format: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if format:
            if format in FORMATS and FORMATS[format].__qualname__ != cls.__qualname__:
                raise ValueError(f"format {format!r} is already {FORMATS[format].__qualname__}")
            cls.format = format
            FORMATS[format] = cls

    @abstractmethod
    def decode(self) -> Tensor:
        """The weight it stands for, [n, k] float32."""

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight it stands for, [n, k], in `dtype` (default: the dtype of the original weight)."""
        return self.decode().to(dtype or self.dtype)

    @property
    def rounds(self) -> bool:
        """Whether the product rounds x too, see `activations`."""
        return False

    def activations(self, x: Tensor) -> Tensor:
        """x [..., k] as the product sees it, in the dtype of x: x itself, unless the format `rounds` it."""
        return x

    def matmul(self, x: Tensor) -> Tensor:
        """x [..., k] -> activations(x) @ W.T [..., n]; the definition. Formats with a fused kernel override it."""
        return self.activations(x) @ self.dequantize(x.dtype).T

    # --- stored tensors ----------------------------------------------------------------------------------------

    def fields(self) -> dict[str, Tensor | QuantizedTensor]:
        """The stored fields by name, absent (None) ones left out."""
        named = {name: getattr(self, name) for name in self.stored_parts}
        return {name: value for name, value in named.items() if value is not None}

    def stored(self) -> dict[str, Tensor]:
        """Every stored tensor by dotted name: {"codes": ..., "scale.codes": ..., "scale.scale": ...}."""
        out: dict[str, Tensor] = {}
        for name, value in self.fields().items():
            if isinstance(value, QuantizedTensor):
                out |= {f"{name}.{sub}": t for sub, t in value.stored().items()}
            else:
                out[name] = value
        return out

    def with_stored(self, tensors: Mapping[str, Tensor]) -> QuantizedTensor:
        """The same weight with its stored tensors replaced by `tensors`, named as in `stored()`."""
        return from_config(self.config(), tensors)

    def to(self, device: torch.device | str) -> QuantizedTensor:
        """The same weight on `device`; dtypes are part of the format and never change."""
        return self.with_stored({name: t.to(device) for name, t in self.stored().items()})

    def config(self) -> dict[str, Any]:
        """All that is not a tensor, as JSON values; with `stored()` it is the whole object (see `from_config`)."""
        out: dict[str, Any] = {"format": self.format}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in self.stored_parts:
                nested = isinstance(value, QuantizedTensor)
                out[field.name] = None if value is None else value.config() if nested else "tensor"
            elif isinstance(value, torch.dtype):
                out[field.name] = str(value).removeprefix("torch.")
            else:
                out[field.name] = list(value) if isinstance(value, tuple) else value
        return out

    # --- size --------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, int]:
        """Bytes by part, counted from the stored tensors. They sum to `nbytes`."""
        out: Counter[str] = Counter()
        for name, value in self.fields().items():
            part = self.stored_parts[name]
            if isinstance(value, Tensor):
                out[part] += value.numel() * value.element_size()
                continue
            for sub, size in value.parts().items():
                out[_part_inside(part, sub)] += size
        return dict(out)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors, per-tensor constants included."""
        return sum(self.parts().values())

    @property
    def numel(self) -> int:
        """Weights it stands for, n * k."""
        return self.shape[0] * self.shape[1]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight without the per-tensor constants, which `parts()["constants"]` states apart."""
        return 8 * (self.nbytes - self.parts().get("constants", 0)) / self.numel


def _part_inside(outer: str, inner: str) -> str:
    """The part under which a nested tensor's part is counted: its codes are what the outer field is made of."""
    if outer == "inherit" or inner == "constants":
        return inner
    return outer if inner in ("codes", "unquantized") else "second_level"


def from_config(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedTensor:
    """Rebuild a quantized tensor from `config()` and `stored()`; each format checks shapes and dtypes itself.

    Raises ValueError for an unknown format, an unknown or missing field, or a tensor that is missing or left over.
    """
    settings = dict(config)
    name = settings.pop("format", None)
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; known: {', '.join(sorted(FORMATS))}")
    cls = FORMATS[name]
    known = {f.name for f in dataclasses.fields(cls)}
    if set(settings) != known:
        raise ValueError(f"format {name!r} has fields {sorted(known)}, the configuration names {sorted(settings)}")
    values: dict[str, Any] = {}
    used: set[str] = set()
    for field, value in settings.items():
        if field in cls.stored_parts:
            if value == "tensor":
                if field not in tensors:
                    raise ValueError(f"tensor {field!r} of format {name!r} is missing")
                values[field] = tensors[field]
                used.add(field)
            elif isinstance(value, Mapping):
                inner = {k.removeprefix(f"{field}."): t for k, t in tensors.items() if k.startswith(f"{field}.")}
                values[field] = from_config(value, inner)
                used |= {f"{field}.{k}" for k in inner}
            elif value is None:
                values[field] = None
            else:
                raise ValueError(f"field {field!r} of format {name!r} must be 'tensor', null or a table, got {value!r}")
        elif field == "shape":
            if not isinstance(value, list | tuple) or len(value) != 2:
                raise ValueError(f"shape of format {name!r} must be [n, k], got {value!r}")
            values[field] = (int(value[0]), int(value[1]))
        elif field == "dtype":
            values[field] = _dtype(value)
        else:
            values[field] = tuple(value) if isinstance(value, list) else value
    if left := set(tensors) - used:
        raise ValueError(f"tensors {sorted(left)} do not belong to format {name!r}")
    return cls(**values)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype
