"""How long the first product of a process takes, with a table of configurations and nothing compiled before.

It compiles one configuration of each kernel that it launches; torch and CUDA are started before the clock is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from bench.gpu.shapes import Shape
from bench.gpu.store import Record, Sink
from bench.gpu.subjects import DTYPE
from bench.measure.stats import stat
from quant import METHODS, QuantizedLinear

__all__ = ["first_calls"]

SHAPE = Shape(4096, 4096, "8B q and o, square")
TINY = Shape(128, 256, "tiny")
METHOD = "nf4-g64-dq"
ROWS = (1, 16)


def first_calls(device: str, sink: Sink, about: Mapping[str, Any]) -> None:
    """A record for each number of rows; the caller gives an empty folder for compiled kernels in TRITON_CACHE_DIR."""
    shape = SHAPE if device == "cuda" else TINY
    weight = torch.randn(shape.n, shape.k, device=device).to(DTYPE)
    layer = QuantizedLinear(METHODS[METHOD].quantize(weight), None)
    (weight @ weight.T)[0, 0].item()
    for m in ROWS:
        x = torch.randn(m, shape.k, device=device).to(DTYPE)
        begin = time.perf_counter()
        with torch.no_grad():
            layer(x)
        if device == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - begin
        head: Record = {"kind": "first_call", "key": f"{about['device_name']} / first call / {METHOD} {shape} m={m}"}
        head |= {"device": device, "method": METHOD, "n": shape.n, "k": shape.k, "m": m, "status": "ok", "reason": ""}
        head |= {"implementation": layer.engine_name}
        sink(head | {"first_call_s": stat([spent]), "provenance": about})
