"""CPU time of a quantized linear layer as a ratio to float32 `F.linear`, 4096 x 4096, batch 1 and 32, one thread.

Reference and candidate alternate, thread CPU time is read round each call, and the median of the paired ratios is
reported: it holds within a few percent on a busy machine, where wall times do not. A ratio above 1 is faster than
float32. Run as `python -m bench.micro.test_cpu_linear` for the table, or under pytest for a smoke run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from quant import METHODS, QuantizedLinear

CASES = (
    ("bf16", "bfloat16", "auto"),
    ("uniform-int4-g64", "bfloat16", "auto"),
    ("uniform-int4-g64", "float32", "auto"),
    ("uniform-int8-channel", "bfloat16", "auto"),
    ("uniform-int3-g64", "float32", "auto"),
    ("uniform-int2-g64", "float32", "auto"),
    ("nf4-g64", "bfloat16", "auto"),
    ("nf4-g64", "float32", "auto"),
    ("nf4-g64", "float32", "dense"),
    ("nf4-g64", "float32", "reference"),
)


def speedup(candidate: Callable[[], object], reference: Callable[[], object], rounds: int = 9) -> float:
    """Median over `rounds` alternating pairs of (CPU time of `reference`) / (CPU time of `candidate`), one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratios = []
        for i in range(-2, rounds):
            pair = (reference, candidate) if i % 2 else (candidate, reference)
            spent = {}
            for run in pair:
                begin = time.thread_time()
                run()
                spent[run] = time.thread_time() - begin
            if i >= 0:
                ratios.append(spent[reference] / spent[candidate])
        return statistics.median(ratios)
    finally:
        torch.set_num_threads(threads)


def layer(method: str, dtype: str, engine: str, size: int) -> tuple[QuantizedLinear, torch.Tensor]:
    """The quantized layer and the float32 weight [size, size] it came from."""
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    made = QuantizedLinear(METHODS[method].quantize(weight), None, engine, compute_dtype=getattr(torch, dtype))
    return made, weight


@torch.inference_mode()
def measure(method: str, dtype: str, engine: str, batch: int, size: int = 4096, rounds: int = 9) -> dict[str, object]:
    """One row of the table. x is float32 for the reference and `dtype` for the candidate."""
    made, weight = layer(method, dtype, engine, size)
    x = torch.randn(batch, size, generator=torch.Generator().manual_seed(1))
    inner = x.to(getattr(torch, dtype))
    ratio = speedup(lambda: made(inner), lambda: torch.nn.functional.linear(x, weight), rounds)
    return {
        "method": method,
        "dtype": dtype,
        "path": made.engine_name,
        "batch": batch,
        "speedup": ratio,
        "cache_bytes": made.cache_nbytes,
    }


@pytest.mark.parametrize(("method", "dtype", "engine"), CASES)
def test_every_case_runs_and_computes_its_product(method: str, dtype: str, engine: str) -> None:
    row = measure(method, dtype, engine, batch=2, size=256, rounds=1)
    assert float(str(row["speedup"])) > 0
    made, _ = layer(method, dtype, engine, 256)
    x = torch.randn(2, 256).to(getattr(torch, dtype))
    expected = x.float() @ made.weight_qt.decode().T
    # bfloat16 rounds x, scales and sums to 8 bits: half a percent
    assert (made(x).float() - expected).norm() <= (1e-5 if dtype == "float32" else 1e-2) * expected.norm()


if __name__ == "__main__":
    print("method                dtype     path       batch  speed / fp32  cache MB")
    for case in CASES:
        for m in (1, 32):
            r = measure(*case, batch=m)
            print(
                f"{r['method']!s:21} {r['dtype']!s:9} {r['path']!s:10} {m:5}  {r['speedup']:12.2f}  "
                f"{float(str(r['cache_bytes'])) / 1e6:8.1f}"
            )
