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
from quant.linear import DEFAULT_SKIP, QuantizedLinear, linears, quantize_model
from quant.lora import (
    LinearWithLoRA,
    LoRAConfig,
    LoRALayer,
    LoRALinear,
    add_lora,
    lora_parameters,
    merge_lora,
    quantize_adapter,
)

__all__ = [
    "DEFAULT_SKIP",
    "FAMILIES",
    "FORMATS",
    "METHODS",
    "PARTS",
    "Calibration",
    "LinearWithLoRA",
    "LoRAConfig",
    "LoRALayer",
    "LoRALinear",
    "QuantizedLinear",
    "QuantizedTensor",
    "Quantizer",
    "UnsupportedError",
    "add_lora",
    "formats",
    "linears",
    "lora_parameters",
    "merge_lora",
    "methods",
    "quantize_adapter",
    "quantize_model",
    "register",
]
