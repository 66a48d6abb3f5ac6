"""The optimum-quanto library: asymmetric groups of 64 (by range, or by its own HQQ) and row-wise int8, in float16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor
from quant.formats.foreign import Foreign
from quant.peers.base import Peer, register

__all__ = ["Quanto"]


@dataclass(frozen=True)
class Quanto(Peer):
    """`bits` 2, 4 or 8; `optimizer` "max" or "hqq" finds scale and shift of 2 and 4 bits; 8 bits have a scale a row."""

    bits: int = 4
    group: int = 64
    optimizer: str = "max"

    package = "optimum-quanto"
    source = "optimum-quanto, quantize_weight"
    idea = "optimum-quanto's weights"

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def family(self) -> str:
        return "uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        from optimum.quanto import AbsmaxOptimizer, HqqOptimizer, MaxOptimizer, qint2, qint4, qint8, quantize_weight

        half = weight.half()  # scales are stored in the weight's dtype
        if self.bits == 8:
            scale = AbsmaxOptimizer()(half, qtype=qint8, axis=0)
            rows = quantize_weight(half, qint8, 0, scale)
            return Foreign.made(
                weight,
                self.package,
                [("codes", rows._data), ("scales", rows._scale)],
                lambda stored: stored[0].float() * stored[1].float(),
            )
        qtype = {2: qint2, 4: qint4}[self.bits]
        found = {"max": MaxOptimizer, "hqq": HqqOptimizer}[self.optimizer]()
        scale, shift = found(half, qtype=qtype, axis=0, group_size=self.group)
        made = quantize_weight(half, qtype, 0, scale, shift, group_size=self.group, activation_qtype=None)

        def decode(stored: Sequence[Tensor]) -> Tensor:
            made._data._data, made._scale, made._shift = stored
            with torch.no_grad():
                dense: Tensor = made.dequantize()
            return dense

        parts = [("codes", made._data._data), ("scales", made._scale), ("zeros", made._shift)]
        return Foreign.made(weight, self.package, parts, decode)


_HALF = "it rounds the weight to float16 first"
_SHIFT = f"{_HALF}, and its shift is a float16 in units of the weight, ours in units of codes"
_STOP = f"{_SHIFT}; it stops all groups at one round, ours keeps the best round of each group"
register("peer-quanto-int8", Quanto(bits=8, ours="uniform-int8-channel", differs=_HALF))
register(
    "peer-quanto-int4",
    Quanto(ours="uniform-int4-float-zero-g64", beside=("uniform-int4-asym-g64",), differs=_SHIFT),
)
register("peer-quanto-int4-hqq", Quanto(optimizer="hqq", ours="hqq-int4-g64", differs=_STOP))
register(
    "peer-quanto-int2",
    Quanto(bits=2, ours="control-int2-float-zero-g64", beside=("uniform-int2-asym-g64",), differs=_SHIFT),
)
