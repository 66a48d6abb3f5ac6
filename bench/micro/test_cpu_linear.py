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

from bench.provenance import commit, cpu_model
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


HEADING = """# One linear layer of 4096 x 4096 on the CPU

Speed relative to float32 `F.linear` in the same run, above 1 is faster: the median of 15 interleaved pairs of thread
CPU times, and their range. bfloat16: x and the product in bfloat16. Copies: bytes kept beside the stored ones.
"""


def speedups(candidate: Callable[[], object], reference: Callable[[], object], rounds: int = 15) -> list[float]:
    """(CPU time of `reference`) / (CPU time of `candidate`) of `rounds` alternating pairs, ascending, one thread."""
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
        return sorted(ratios)
    finally:
        torch.set_num_threads(threads)


def layer(method: str, dtype: str, engine: str, size: int) -> tuple[QuantizedLinear, torch.Tensor]:
    """The quantized layer and the float32 weight [size, size] it came from."""
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    made = QuantizedLinear(METHODS[method].quantize(weight), None, engine, compute_dtype=getattr(torch, dtype))
    return made, weight


@torch.inference_mode()
def measure(method: str, dtype: str, engine: str, batch: int, size: int = 4096, rounds: int = 15) -> dict[str, object]:
    """One row of the table. x is float32 for the reference and `dtype` for the candidate."""
    made, weight = layer(method, dtype, engine, size)
    x = torch.randn(batch, size, generator=torch.Generator().manual_seed(1))
    inner = x.to(getattr(torch, dtype))
    ratios = speedups(lambda: made(inner), lambda: torch.nn.functional.linear(x, weight), rounds)
    return {
        "method": method,
        "dtype": dtype,
        "path": made.engine_name,
        "batch": batch,
        "speedup": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
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


def main() -> None:
    """Print the table as Markdown, with what it was measured on."""
    rows = [measure(*case, batch=m) for case in CASES for m in (1, 32)]
    print(HEADING)
    about = f"{cpu_model()}, one thread, torch {torch.__version__}, commit {str(commit()[0])[:12]}"
    print(f"{about}. `python -m bench.micro.test_cpu_linear`\n")
    print("| method | x | path | batch | speed / fp32 | range | copies (MB) |")
    print("|:--|:--|:--|--:|--:|:--|--:|")
    for r in rows:
        copies = int(str(r["cache_bytes"])) / 1e6
        print(
            f"| {r['method']} | {r['dtype']} | {r['path']} | {r['batch']} | {r['speedup']:.2f} | "
            f"{r['low']:.2f} to {r['high']:.2f} | {copies:.1f} |"
        )


if __name__ == "__main__":
    main()
