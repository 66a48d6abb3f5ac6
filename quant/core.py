"""What a quantized weight is, what a quantizer is, and the one table of methods.

A `QuantizedTensor` is a frozen dataclass. Its fields that hold a tensor, or another `QuantizedTensor`, are *stored*;
all other fields are its configuration. Everything else follows from that by recursion: the bytes, the state dict,
the file format, moving between devices. Double quantization and prune-then-quantize are therefore no special case:
a stored field (the scale, the kept values) is itself quantized.

A `Quantizer` is a frozen dataclass of settings with one verb, `quantize`. `register(name, quantizer)` puts it in
`METHODS`, and it appears in the tests, the benchmark, the tables and the plots with no other edit.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = [
    "FAMILIES",
    "FORMATS",
    "METHODS",
    "PARTS",
    "Calibration",
    "QuantizedTensor",
    "Quantizer",
    "UnsupportedError",
    "register",
]

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
FAMILIES = (
    "none",
    "uniform",
    "non-uniform",
    "nf4",
    "double quantization",
    "clustering",
    "pruning",
)
LARGEST = 2.0**100  # weights beyond this are refused: their scales could not be stored in float32
SMALLEST = 2.0**-100  # weights below this are stored as zero: their reciprocals overflow float32

FORMATS: dict[str, type[QuantizedTensor]] = {}
METHODS: dict[str, Quantizer] = {}


class UnsupportedError(ValueError):
    """The settings are fine, but this weight cannot be stored in this format; the text says why."""


@dataclass(frozen=True)
class Calibration:
    """What a data-aware method may know about a layer: second moments of its input, [k, k] and the sample count."""

    second_moment: Tensor | None = None
    n_samples: int = 0


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

    def matmul(self, x: Tensor) -> Tensor:
        """x [..., k] -> x @ W.T [..., n]; the definition. Formats with a fused kernel override it."""
        return x @ self.dequantize(x.dtype).T

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


@dataclass(frozen=True)
class Quantizer(ABC):
    """Settings of a method, checked when constructed; `quantize` is pure.

    Subclasses implement `_quantize` and need not look after bad input: non-finite, huge, empty and denormal weights
    are dealt with here, once.
    """

    source: ClassVar[str] = ""  # paper, section or library the method comes from
    idea: ClassVar[str] = ""  # one line for `bench list methods`

    @property
    @abstractmethod
    def family(self) -> str:
        """One of `FAMILIES`; decides the colour in every plot."""

    @abstractmethod
    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        """`weight` is [n, k] float32, contiguous, finite, and the caller's own copy is not aliased for writing."""

    def quantize(self, weight: Tensor, calibration: Calibration | None = None) -> QuantizedTensor:
        """Quantize `weight` [n, k] of a floating dtype; the result stands for that shape and dtype.

        Raises TypeError for an integer weight, ValueError for a weight that is not 2-D, is empty or holds NaN or
        infinity (naming the first index), UnsupportedError for magnitudes beyond 2**100 or a shape that the format
        cannot hold. Magnitudes below 2**-100 are stored as zero.
        """
        quantized = self._quantize(checked(weight), calibration)
        return dataclasses.replace(quantized, dtype=weight.dtype)

    def for_model(self, weights: Iterable[Tensor]) -> Quantizer:
        """The quantizer to use for every weight of one model; a method with a model-wide rule returns a new one."""
        return self

    @property
    def trainable(self) -> tuple[str, ...]:
        """Stored fields that fine-tuning may update (cluster centroids); most methods freeze everything."""
        return ()

    def settings(self) -> dict[str, Any]:
        """Every setting as JSON values, nested quantizers included; equal settings are equal methods."""
        out: dict[str, Any] = {"quantizer": type(self).__name__}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            out[field.name] = value.settings() if isinstance(value, Quantizer) else value
        return out


def checked(weight: Tensor) -> Tensor:
    """`weight` as contiguous float32 after the checks that every method shares; never the caller's own memory."""
    if not weight.dtype.is_floating_point:
        raise TypeError(f"weight must have a floating dtype, got {weight.dtype}")
    if weight.ndim != 2:
        raise ValueError(f"weight must be 2-D [n, k], got shape {list(weight.shape)}")
    if weight.numel() == 0:
        raise ValueError(f"weight is empty: shape {list(weight.shape)}")
    w = weight.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    size = w.abs()
    largest = float(size.max())
    if not largest < float("inf"):
        bad = (~torch.isfinite(weight.detach().float() if weight.element_size() == 1 else weight)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            value = float(weight[row, column])
            raise ValueError(f"weight is not finite: {value} at [{row}, {column}] of shape {list(w.shape)}")
        largest = float(weight.detach().abs().max())  # float64 beyond the range of float32
    if largest > LARGEST:
        raise UnsupportedError(f"weight of magnitude {largest:.3g} exceeds 2**100; rescale the layer first")
    return w.masked_fill_(size < SMALLEST, 0.0)


def register(name: str, quantizer: Quantizer) -> Quantizer:
    """Enter `quantizer` in `METHODS` under `name`: lower-case words joined by hyphens, as in `uniform-int4-g64`."""
    if not name or not all(part.isalnum() and part == part.lower() for part in name.split("-")):
        raise ValueError(f"method name {name!r} must be lower-case words joined by hyphens")
    if name in METHODS and METHODS[name] != quantizer:
        raise ValueError(f"method {name!r} is already registered with other settings: {METHODS[name]}")
    if quantizer.family not in FAMILIES:
        raise ValueError(f"method {name!r}: unknown family {quantizer.family!r}; known: {', '.join(FAMILIES)}")
    if not quantizer.source:
        raise ValueError(f"method {name!r}: {type(quantizer).__name__} names no source")
    METHODS[name] = quantizer
    return quantizer
