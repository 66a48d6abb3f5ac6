"""Quantizers, storage formats and LoRA over them. `METHODS` holds every registered method by name."""

from quant.core import (
    FAMILIES,
    FORMATS,
    METHODS,
    PARTS,
    Calibration,
    QuantizedTensor,
    Quantizer,
    UnsupportedError,
    register,
)

from quant import formats, methods  # isort: skip  (methods register themselves)

__all__ = [
    "FAMILIES",
    "FORMATS",
    "METHODS",
    "PARTS",
    "Calibration",
    "QuantizedTensor",
    "Quantizer",
    "UnsupportedError",
    "formats",
    "methods",
    "register",
]
