"""The torchao library: row-wise int8, int4 in groups, and NF4 in blocks of 64 with its own double quantization.

Its layout of 4-bit integers that a CPU can use has whole bytes, and they are counted so; `code_bits` says what of them
is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from quant.core import Calibration, QuantizedTensor, UnsupportedError
from quant.formats.foreign import Foreign
from quant.peers.base import Peer, register

__all__ = ["TorchAO", "TorchAONF4"]


@dataclass(frozen=True)
class TorchAO(Peer):
    """Weight-only integers: `bits` 8 with a scale a row, or 4 in groups of `group`."""

    bits: int = 8
    group: int = 0

    package = "torchao"
    source = "torchao, quantize_"
    idea = "torchao's weight-only integers"

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def family(self) -> str:
        return "uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        config: Any = Int8WeightOnlyConfig()
        if self.bits == 4:
            config = IntxWeightOnlyConfig(weight_dtype=cast("Any", torch).int4, granularity=PerGroup(self.group))
        quantize_(layer, config)
        made: Any = layer.weight
        parts = {"qdata": "codes", "scale": "scales", "zero_point": "zeros"}
        names = [name for name in made.__tensor_flatten__()[0] if getattr(made, name) is not None]

        def decode(stored: Sequence[Tensor]) -> Tensor:
            for name, tensor in zip(names, stored, strict=True):
                setattr(made, name, tensor)
            dense: Tensor = made.dequantize()
            return dense

        return Foreign.made(weight, self.package, [(parts[n], getattr(made, n)) for n in names], decode)


@dataclass(frozen=True)
class TorchAONF4(Peer):
    """NF4 whose block maxima are int8 about their mean, in blocks of `outer`."""

    block: int = 64
    outer: int = 256

    package = "torchao"
    source = "torchao, to_nf4"
    idea = "torchao's NF4 with double quantization"

    @property
    def code_bits(self) -> int:
        return 4

    @property
    def family(self) -> str:
        return "double quantization"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        try:
            from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4
        except ImportError:
            from torchao.dtypes.nf4tensor import to_nf4
        if weight.numel() % (self.block * self.outer):
            raise UnsupportedError(
                f"torchao's NF4 takes weights in multiples of {self.block * self.outer}, this has {weight.numel()}"
            )
        made: Any = to_nf4(weight, self.block, self.outer)
        parts = {
            "quantized_data": "codes",
            "quantized_scalers": "scales",
            "quantization_factor": "second_level",
            "scaler_mean": "constants",
            "nf4": "constants",
        }

        def decode(stored: Sequence[Tensor]) -> Tensor:
            for name, tensor in zip(parts, stored, strict=True):
                setattr(made, name, tensor.reshape(getattr(made, name).shape))
            dense: Tensor = made.get_original_weight()
            return dense

        return Foreign.made(
            weight, self.package, [(part, getattr(made, name).reshape(-1)) for name, part in parts.items()], decode
        )


_STEP = "its step is max / {} over all {} codes and may clip the largest weight; ours is max / {} over {} codes"
_NESTED = "its scales are int8 about the mean of all, ours have a zero point a block"
register("peer-torchao-int8", TorchAO(ours="uniform-int8-channel", differs=_STEP.format("127.5", 256, 127, 255)))
register(
    "peer-torchao-int4-g64",
    TorchAO(
        bits=4,
        group=64,
        ours="uniform-int4-g64",
        beside=("searched-int4-g64",),
        differs=_STEP.format("7.5", 16, 7, 15),
    ),
)
register("peer-torchao-nf4-dq", TorchAONF4(ours="nf4-g64-dq-int8", differs=_NESTED))
