"""The bitsandbytes library: NF4 and FP4 in blocks of 64, with and without double quantization, and row-wise int8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from quant.core import Calibration, QuantizedTensor
from quant.formats.foreign import Foreign
from quant.peers.base import Peer, register

__all__ = ["FourBit", "Int8"]


@dataclass(frozen=True)
class FourBit(Peer):
    """`table` "nf4" or "fp4"; `nested` also quantizes the block maxima."""

    table: str = "nf4"
    nested: bool = False
    block: int = 64

    package = "bitsandbytes"
    source = "bitsandbytes, quantize_4bit"
    idea = "bitsandbytes' 4-bit blocks"

    @property
    def code_bits(self) -> int:
        return 4

    @property
    def family(self) -> str:
        return "double quantization" if self.nested else "nf4" if self.table == "nf4" else "non-uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        codes, state = quantize_4bit(
            weight, blocksize=self.block, quant_type=self.table, compress_statistics=self.nested
        )
        parts = [("codes", codes), ("scales", state.absmax), ("constants", state.code)]
        if self.nested:
            parts += [
                ("second_level", state.state2.absmax),
                ("constants", state.state2.code),
                ("constants", state.offset.reshape(1)),
            ]

        def decode(stored: Sequence[Tensor]) -> Tensor:
            state.absmax, state.code = stored[1], stored[2]
            if self.nested:
                state.state2.absmax, state.state2.code, state.offset = stored[3], stored[4], stored[5].reshape(())
            dense: Tensor = dequantize_4bit(stored[0], state)
            return dense

        return Foreign.made(weight, self.package, parts, decode)


@dataclass(frozen=True)
class Int8(Peer):
    """One scale a row, as LLM.int8() stores a weight (Dettmers et al. 2022, arXiv 2208.07339)."""

    package = "bitsandbytes"
    source = "bitsandbytes, int8_vectorwise_quant"
    idea = "bitsandbytes' row-wise int8"

    @property
    def code_bits(self) -> int:
        return 8

    @property
    def family(self) -> str:
        return "uniform"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

        codes, scale, _ = int8_vectorwise_quant(weight.half())
        return Foreign.made(
            weight,
            self.package,
            [("codes", codes), ("scales", scale)],
            lambda stored: int8_vectorwise_dequant(stored[0], stored[1]),
        )


register("peer-bnb-nf4", FourBit(ours="nf4-g64"))
_NESTED = "its CPU build finds the 8-bit codes of the scales through a table; ours are the nearest"
_ROWS = "it rounds the weight to float16 first and keeps its scales in float32; ours are in float16"
register("peer-bnb-nf4-dq", FourBit(nested=True, ours="nf4-g64-dq", differs=_NESTED))
register("peer-bnb-fp4", FourBit(table="fp4", ours="fp4-bnb-g64"))
register("peer-bnb-int8", Int8(ours="uniform-int8-channel", differs=_ROWS))
