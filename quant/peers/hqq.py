"""The hqq library: half-quadratic quantization with groups along the row, its scales and zeros kept in float16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor
from quant.formats.foreign import Foreign
from quant.peers.base import Peer, register

__all__ = ["HQQLibrary"]


@dataclass(frozen=True)
class HQQLibrary(Peer):
    """`bits` 2, 3 or 4 and `group` as the library takes them; its layer keeps scales in the compute dtype, so here."""

    bits: int = 4
    group: int = 64

    package = "hqq"
    source = "hqq, Quantizer.quantize with axis=1 and optimize=True"
    idea = "the hqq library's own half-quadratic quantization"

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def family(self) -> str:
        return "uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        from hqq.core.quantize import Quantizer as Library

        codes, meta = Library.quantize(
            weight,
            nbits=self.bits,
            group_size=self.group,
            axis=1,
            optimize=True,
            device=str(weight.device),
            compute_dtype=torch.float16,
        )
        scale, zero = meta["scale"].half(), meta["zero"].half()

        def decode(stored: Sequence[Tensor]) -> Tensor:
            known = meta | {"scale": stored[1].float(), "zero": stored[2].float(), "compute_dtype": torch.float32}
            dense: Tensor = Library.dequantize(stored[0], known)
            return dense

        return Foreign.made(weight, self.package, [("codes", codes), ("scales", scale), ("zeros", zero)], decode)


_ROUNDING = (
    "it chooses codes against scales and zeros in float32 and then rounds those to float16, ours against the rounded "
    "ones; it stops all groups at one round, ours keeps the best round of each group"
)
for _bits in (4, 3, 2):
    register(f"peer-hqq-{_bits}bit", HQQLibrary(bits=_bits, ours=f"hqq-int{_bits}-g64", differs=_ROUNDING))
