"""Made-up records of a GPU, for tests of tables and plots only: every figure follows from a formula."""

from __future__ import annotations

from typing import Any

from bench.gpu.shapes import ROWS

Record = dict[str, Any]
BANDWIDTH, PRODUCT = 4e12, 8e14
SHAPES = ((8192, 8192), (28672, 8192), (4096, 4096))
BITS = {"dense-bf16": 16.0, "nf4-g64-dq": 4.13, "nf4-g64": 4.5, "uniform-int4-g64": 4.25, "bitsandbytes-nf4-dq": 4.13}
LEVEL = {"dense-bf16": "baseline", "bitsandbytes-nf4-dq": "rival"}
METHOD = {"dense-bf16": "bf16", "bitsandbytes-nf4-dq": "nf4-g64-dq"}


def stat(value: float, spread: float = 0.02) -> Record:
    """A figure with an interval of `spread` to each side."""
    ends = {"low": value * (1 - spread), "high": value * (1 + spread)}
    return {"value": value, **ends, "n": 25, "interval": "order95"}


def about(device: str = "NVIDIA H200", kind: str = "cuda") -> Record:
    """The provenance of a record."""
    return {
        "device": kind,
        "device_name": device,
        "commit": "0" * 40,
        "dirty": False,
        "versions": {"torch": "2.11.0", "triton": "3.6.0"},
    }


def kernel(
    subject: str, m: int, shape: tuple[int, int], speedup: float, device: str = "NVIDIA H200", operation: str = "matmul"
) -> Record:
    """A timed cell; the dense layer is as fast as the measured ceilings allow."""
    n, k = shape
    dense = max(2 * n * k / BANDWIDTH, 2 * m * n * k / PRODUCT)
    seconds = dense / speedup
    moved = int(n * k * BITS.get(subject, 4.5) / 8) + 2 * m * (n + k)
    level = LEVEL.get(subject, "op" if "_" in subject else "layer")
    out: Record = {"schema": 1, "kind": "kernel", "key": f"{device} / {operation} {n}x{k} m={m} / {level} / {subject}"}
    out |= {"status": "ok", "reason": "", "device": "cuda", "operation": operation, "n": n, "k": k, "m": m or None}
    out |= {"layer": "square", "dtype": "bfloat16", "subject": subject, "level": level}
    out |= {"method": METHOD.get(subject, subject), "implementation": "triton", "time_kind": "graph"}
    out |= {"graph_s": stat(seconds), "eager_s": stat(2 * seconds), "dispatch_s": stat(1e-5), "time_s": stat(seconds)}
    out |= {"speedup": stat(speedup), "speedup_eager": stat(speedup / 2), "moved_bytes": moved, "copies": 6}
    flop = 2 * m * n * k
    out |= {"flop": flop, "flop_per_s": flop / seconds, "flop_share": flop / seconds / PRODUCT} if flop else {"flop": 0}
    out |= {"bandwidth_bytes_per_s": moved / seconds, "bandwidth_share": moved / seconds / BANDWIDTH}
    out["ceilings"] = {"copy_bytes_per_s": stat(BANDWIDTH), "product_flop_per_s": stat(PRODUCT)}
    return out | {"clocks": {"sm_hz": 1_980_000_000}, "relative_error": 1e-3, "provenance": about(device)}


def speed(subject: str, m: int) -> float:
    """A speed-up that falls with the rows: 1 for the dense layer, at m = 64 for its rival."""
    if subject == "dense-bf16":
        return 1.0
    return {"bitsandbytes-nf4-dq": 2.0, "nf4-g64-dq": 3.2, "nf4-g64": 3.0}.get(subject, 3.1) * (1 - 0.01 * m**0.5)


def everything(device: str = "NVIDIA H200") -> list[Record]:
    """A run in which all is timed."""
    records = [kernel(name, m, shape, speed(name, m), device) for shape in SHAPES for name in BITS for m in ROWS]
    for operation, share in (("dequantize", 0.9), ("quantize", 0.3)):
        for family in ("codebook", "affine"):
            record = kernel(f"{family}_{operation}", 0, SHAPES[0], 1.0, device, operation)
            records.append(record | {"bandwidth_share": share})
    gone = {"schema": 1, "kind": "skipped", "key": f"{device} / skipped / gemlite", "status": "skipped"}
    gone |= {"reason": "gemlite is not installed", "subject": "gemlite-int4-g64", "level": "rival", "device": "cuda"}
    tests = {"schema": 1, "kind": "tests", "key": "tests", "status": "ok", "reason": "", "device": "cuda"}
    tests |= {"passed": 10, "failed": 0, "skipped": 1, "unreached": 0, "failures": [], "provenance": about(device)}
    first = {"schema": 1, "kind": "first_call", "key": "first", "status": "ok", "reason": "", "device": "cuda", "m": 1}
    first |= {"method": "nf4-g64-dq", "n": 4096, "k": 4096, "first_call_s": {"value": 0.6}, "provenance": about(device)}
    way = {"schema": 1, "kind": "route", "key": "route", "status": "ok", "reason": "", "device": "cuda", "m": 64}
    way |= {"method": "nf4-g64-dq", "n": 8192, "k": 8192, "product_over_dense": stat(0.7), "provenance": about(device)}
    return [*records, gone | {"provenance": about(device)}, tests, first, way]
