"""How a quantized weight is multiplied with: one engine a file, chosen by name or by `choose`.

An engine multiplies x [m, k] with a `QuantizedTensor` [n, k] to x @ W.T [m, n]. What it derives from the stored
tensors for that (a repacked copy, decoded scales, a dense copy) is a cache, reported by `Prepared.nbytes` and never
part of the stored bytes.
"""

from quant.engines.aten import Int4Pack, Int8Pack
from quant.engines.base import ENGINES, Engine, Prepared
from quant.engines.choice import choose
from quant.engines.composed import Around
from quant.engines.plain import Dense, Reference
from quant.engines.tiles import Lut, Tiled
from quant.engines.triton import Triton
from quant.engines.w8a8 import W8A8

for _engine in (Reference(), Dense(), Int4Pack(), Int8Pack(), Lut(), Tiled(), Around(), Triton(), W8A8()):
    ENGINES[_engine.name] = _engine

__all__ = ["ENGINES", "Engine", "Prepared", "choose"]
