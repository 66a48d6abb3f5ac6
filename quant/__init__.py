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
from quant.adapters import load_adapter, save_adapter
from quant.calibrate import calibrate
from quant.files import check_model_folder
from quant.init import INITS, quantize_with_lora
from quant.linear import QuantizedLinear
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
from quant.merging import merge_into_zeros
from quant.model import bits_per_weight, load_model, model_parts, quantized_numel, save_model, saved_sizes
from quant.modules import DEFAULT_SKIP, linears
from quant.quantizing import quantize_model

__all__ = [
    "DEFAULT_SKIP",
    "FAMILIES",
    "FORMATS",
    "INITS",
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
    "bits_per_weight",
    "calibrate",
    "check_model_folder",
    "formats",
    "linears",
    "load_adapter",
    "load_model",
    "lora_parameters",
    "merge_into_zeros",
    "merge_lora",
    "methods",
    "model_parts",
    "quantize_adapter",
    "quantize_model",
    "quantize_with_lora",
    "quantized_numel",
    "register",
    "save_adapter",
    "save_model",
    "saved_sizes",
]
