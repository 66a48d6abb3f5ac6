"""What a quantizer is, the checks that all of them share, and the one table of methods.

A `Quantizer` is a frozen dataclass of settings with one verb, `quantize`. `register(name, quantizer)` puts it in
`METHODS`, and it appears in the tests, the benchmark, the tables and the plots with no other edit. What it returns is
a `quant.tensor.QuantizedTensor`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from quant.rows import row_blocks
from quant.tensor import FORMATS, PARTS, QuantizedTensor, from_config

__all__ = [
    "FAMILIES",
    "FORMATS",
    "METHODS",
    "PARTS",
    "STATISTICS",
    "Calibration",
    "QuantizedTensor",
    "Quantizer",
    "UnsupportedError",
    "from_config",
    "register",
]

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


METHODS: dict[str, Quantizer] = {}


class UnsupportedError(ValueError):
    """The settings are fine, but this weight cannot be stored in this format; the text says why."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a data-aware method may know about a layer [n, k] beyond its weight; `quant.calibrate` gathers it.

    second_moment   [k, k] float32, the mean of x x^T over the `n_samples` rows x that went into the layer
    magnitude       [k] float32, the mean of |x|
    fisher          [n, k] floating, the mean over texts of the squared gradient of the loss with respect to the weight
    """

    second_moment: Tensor | None = None
    magnitude: Tensor | None = None
    fisher: Tensor | None = None
    n_samples: int = 0

    @classmethod
    def neutral(cls, n: int, k: int) -> Calibration:
        """What nothing is known about: inputs are independent and of unit size, all weights matter alike."""
        return cls(torch.eye(k), torch.ones(k), torch.ones(n, k), 1)


STATISTICS = ("second_moment", "magnitude", "fisher")


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

    @property
    def needs(self) -> frozenset[str]:
        """The fields of `Calibration`, of `STATISTICS`, without which it cannot quantize; those of nested ones too."""
        nested = (getattr(self, field.name) for field in dataclasses.fields(self))
        return frozenset().union(*(q.needs for q in nested if isinstance(q, Quantizer)))

    @abstractmethod
    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        """`weight` is [n, k] float32, contiguous, finite, and the caller's own copy is not aliased for writing."""

    def quantize(self, weight: Tensor, calibration: Calibration | None = None) -> QuantizedTensor:
        """Quantize `weight` [n, k] of a floating dtype; the result stands for that shape and dtype.

        Raises TypeError for an integer weight, ValueError for a weight that is not 2-D, is empty or holds NaN or
        infinity (naming the first index) and for a calibration that lacks what the method needs or is of another
        shape, UnsupportedError for magnitudes beyond 2**100 or a shape that the format cannot hold. Magnitudes below
        2**-100 are stored as zero.
        """
        if self.needs:
            self._check(calibration, weight)
        quantized = self._quantize(checked(weight), calibration)
        return dataclasses.replace(quantized, dtype=weight.dtype)

    def _check(self, calibration: Calibration | None, weight: Tensor) -> None:
        for name in sorted(self.needs):
            given = None if calibration is None else getattr(calibration, name)
            if given is None:
                raise ValueError(
                    f"{type(self).__name__} needs the calibration's {name}, which was not given: gather it with "
                    f"quant.calibrate(model, batches, needs={{{name!r}}}) and pass it on"
                )
            n, k = weight.shape
            want = {"second_moment": (k, k), "magnitude": (k,), "fisher": (n, k)}[name]
            if tuple(given.shape) != want:
                raise ValueError(f"calibration's {name} must be {list(want)}, got {list(given.shape)}")
            if not bool(torch.isfinite(given).all()):
                raise ValueError(f"calibration's {name} is not finite")

    def for_layers(
        self, weights: Mapping[str, Tensor], calibration: Mapping[str, Calibration] | None = None
    ) -> Mapping[str, Quantizer]:
        """The quantizer of each layer of one model, by name; a method with a model-wide rule returns new ones.

        `weights` [n, k] are what each layer holds; a weight that layers share may stand under several names.
        """
        return dict.fromkeys(weights, self)

    @property
    def trainable(self) -> tuple[str, ...]:
        """Stored fields that fine-tuning may update (cluster centroids); most methods freeze everything."""
        return ()

    def settings(self) -> dict[str, Any]:
        """Every setting as JSON values, nested quantizers included; equal settings are equal methods."""
        out: dict[str, Any] = {"quantizer": type(self).__name__}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            out[field.name] = _setting(value)
        return out


def _setting(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_setting(v) for v in value]
    return value.settings() if isinstance(value, Quantizer) else value


def checked(weight: Tensor) -> Tensor:
    """`weight` as contiguous float32 after the checks that every method shares; never the caller's own memory."""
    if not weight.dtype.is_floating_point:
        raise TypeError(f"weight must have a floating dtype, got {weight.dtype}")
    if weight.ndim != 2:
        raise ValueError(f"weight must be 2-D [n, k], got shape {list(weight.shape)}")
    if weight.numel() == 0:
        raise ValueError(f"weight is empty: shape {list(weight.shape)}")
    w = weight.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    largest = _largest(w)
    if not largest < float("inf"):
        bad = (~torch.isfinite(weight.detach().float() if weight.element_size() == 1 else weight)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            value = float(weight[row, column])
            raise ValueError(f"weight is not finite: {value} at [{row}, {column}] of shape {list(w.shape)}")
        largest = float(weight.detach().abs().max())  # float64 beyond the range of float32
    if largest > LARGEST:
        raise UnsupportedError(f"weight of magnitude {largest:.3g} exceeds 2**100; rescale the layer first")
    return w


def _largest(w: Tensor) -> float:
    """Largest magnitude of `w` [n, k], NaN if it holds one; magnitudes below `SMALLEST` are set to zero in place."""
    found, blocks = [], row_blocks(w)
    room = torch.empty_like(w[blocks[0]])  # written over for every block: see quant.rows
    small = torch.empty_like(room, dtype=torch.bool)
    for rows in blocks:
        block = w[rows]
        size = torch.abs(block, out=room[: len(block)])
        found.append(size.amax())
        block.masked_fill_(torch.lt(size, SMALLEST, out=small[: len(block)]), 0.0)
    return float(torch.stack(found).amax())


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
