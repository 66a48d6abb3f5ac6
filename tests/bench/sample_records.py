"""Made-up records of realistic size and layout, for the tests of tables and plots only: nothing here was measured."""

from __future__ import annotations

import math
import random
from typing import Any

from tests.bench.sample_starts import LINEARS, STARTS, audit, start

MODELS = {"minilm": ("reviews", 10_616_832, 22_565_376), "smollm2": ("reviews", 106_168_320, 134_515_008)}
_GROUPED = [*((b, "g64") for b in (8, 6, 5, 4, 3, 2)), (4, "g32"), (4, "g128"), (8, "channel"), (4, "channel")]
# name: (family, bits per weight, relative error)
METHODS: dict[str, tuple[str, float, float]] = {
    "fp32": ("none", 32.0, 0.0),
    "bf16": ("none", 16.0, 0.0017),
    **{
        f"uniform-int{b}-{g}": (
            "uniform",
            b + {"g32": 0.5, "g64": 0.25, "g128": 0.125}.get(g, 0.03),
            1.7 / 2**b * (1.5 if g == "channel" else 1),
        )
        for b, g in _GROUPED
    },
    **{f"uniform-int{b}-asym-g64": ("uniform", b + 0.25 + b / 64, 1.45 / 2**b) for b in (8, 6, 5, 4, 3, 2)},
    "uniform-int4-float-zero-g64": ("uniform", 4.5, 0.09),
    "uniform-int4-tensor": ("uniform", 4.0, 0.35),
    "uniform-int8-textbook": ("uniform", 8.0, 0.02),
    **{f"quantile-{b}": ("non-uniform", b + 0.02, 2.1 / 2**b) for b in (4, 3)},
    **{f"kmeans-row-{b}": ("non-uniform", b + 0.44, 1.37 / 2**b) for b in (4, 3, 2)},
    "kmeans-tensor-4": ("non-uniform", 4.0, 0.103),
    "pow2-4-g64": ("non-uniform", 4.25, 0.17),
    "apot-4-g64": ("non-uniform", 4.25, 0.1),
    "fp4-g64": ("non-uniform", 4.5, 0.11),
    "mxfp4": ("non-uniform", 4.25, 0.115),
    "nf4": ("nf4", 4.5, 0.092),
    "nf3": ("nf4", 3.5, 0.19),
    "nf2": ("nf4", 2.5, 0.44),
    "nf4-channel": ("nf4", 4.03, 0.12),
    "nf4-dq": ("double quantization", 4.127, 0.0925),
    "nf3-dq": ("double quantization", 3.127, 0.1905),
    "uniform-int4-g64-dq": ("double quantization", 4.127, 0.107),
    **{f"cluster-{k}": ("clustering", math.log2(k) + 0.01, 1.5 / k) for k in (16, 32, 64, 256)},
    "cluster-16-tuned": ("clustering", 4.01, 0.088),
    "magnitude-30": ("pruning", 12.2, 0.16),
    "magnitude-50": ("pruning", 9.0, 0.35),
    "magnitude-50-int4": ("pruning", 3.25, 0.37),
    "nm-2-4": ("pruning", 9.0, 0.42),
    "nm-4-8-int4": ("pruning", 3.375, 0.4),
    "rows-30": ("pruning", 11.2, 0.5),
}
QLORA = (
    "uniform-int4-g64",
    "uniform-int3-g64",
    "uniform-int2-g64",
    "kmeans-row-4",
    "nf4",
    "nf2",
    "nf4-dq",
    "cluster-16",
    "magnitude-50-int4",
)


def stat(value: float, half: float, n: int, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n, **more}


def compared(
    value: float, half: float, n: int, delta: float, delta_half: float, p: float | None = None
) -> dict[str, Any]:
    ends = {"delta": delta, "delta_low": delta - delta_half, "delta_high": delta + delta_half}
    return stat(value, half, n, **ends, p_value=p)


def record(
    model: str, order: str, method: str, seed: int = 0, *, quick: bool = False, **changes: Any
) -> dict[str, Any]:
    """One finished cell; `changes` replace whole blocks."""
    rng = random.Random(f"{model}/{order}/{method}/{seed}")
    family, bits, error = METHODS[method]
    task, quantized, total = MODELS[model]
    worse = error**2 * {"beneath": 1.0, "merge": 1.1}.get(order, 0.6)
    out: dict[str, Any] = {
        "schema": 1,
        "suite": "default",
        "quick": quick,
        "cell": {"model": model, "task": task, "order": order, "method": method, "seed": seed},
        "key": f"{rng.getrandbits(64):016x}",
        "key_parts": {},
        "status": "ok",
        "reason": "",
        "started_utc": "2026-01-01T00:00:00Z",
        "wall_s": rng.uniform(3, 60),
        "provenance": {
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "dirty": False,
            "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
            "device": "cpu",
            "cpu": "Example CPU @ 2.0 GHz",
            "threads": 2,
            "argv": ["bench", "run"],
        },
        "family": family,
        "label": method,
        "settings": {},
        "memory": memory(quantized, total, bits),
        "training_memory": training_memory(total, quantized, bits, order),
        "speed": speed(bits, family, rng),
        "accuracy": accuracy(model, order, worse, rng),
        "weights": weights(model, family, error, rng),
        "training": {
            "trainable_parameters": TRAINABLE.get(order, 332_546),
            "steps": 250,
            "tokens": 128_000,
            "train_s": rng.uniform(80, 200),
            "first_loss": 0.7,
            "last_loss": 0.4,
        },
    }
    if order in ("qlora", *STARTS):
        out["training"]["start"] = start(order, error, lambda worse: accuracy(model, "start", worse, rng))
    if order in ("qlora", "qa-lora"):
        out["merge_audit"] = audit(order, error, LINEARS[model], lambda worse: accuracy(model, order, worse, rng))
    return out | changes


TRAINABLE = {"untouched": 770, "features": 770, "prompt": 8_450, "full": 22_566_146}


def memory(quantized: int, total: int, bits: float) -> dict[str, Any]:
    scales = quantized // 32
    parts = {
        "codes": int(quantized * bits / 8) - scales,
        "scales": scales,
        "constants": 64,
        "unquantized": 4 * (total - quantized),
        "adapter": 4 * 332_546,
    }
    size = sum(parts.values())
    return {
        "parts_bytes": parts,
        "model_bytes": size,
        "quantized_bytes": parts["codes"] + scales + 64,
        "n_quantized_weights": quantized,
        "bits_per_weight": bits,
        "constants_bytes": 64,
        "bits_per_weight_model": 8 * size / total,
        "entropy_bits_per_weight": bits * 0.93,
        "file_bytes": size + 4096,
        "file_header_bytes": 4096,
        "trainable_parameters": 332_546,
    }


def training_memory(total: int, quantized: int, bits: float, order: str) -> dict[str, Any]:
    trainable = {"full": total, "features": 770, "untouched": 0}.get(order, 332_546)
    out = {
        "weights_bytes": int(quantized * bits / 8) + 4 * (total - quantized),
        "adapter_bytes": 0 if order == "full" else 4 * trainable,
        "gradients_bytes": 4 * trainable,
        "optimizer_bytes": 8 * trainable,
        "activations_bytes": 0 if order == "features" else int(1.1 * total),
    }
    return {
        "peak_bytes": sum(out.values()),
        "peak_rss_bytes": sum(out.values()) + 400_000_000,
        "steps": 250,
        "batch": 32,
        "tokens": 128_000,
        **out,
    }


def speed(bits: float, family: str, rng: random.Random) -> dict[str, Any]:
    ratio = 1.0 if bits == 32 else {"uniform": 1.8, "none": 1.4}.get(family, 0.6) * rng.uniform(0.7, 1.4)
    half = ratio * rng.uniform(0.01, 0.08)
    return {
        "device": "cpu",
        "threads": 2,
        "implementation": {"dense cache": 6, "int4 packed": 30},
        "quantize_s": stat(rng.uniform(0.1, 4), 0.05, 5),
        "noise": stat(1.0, 0.03, 30),
        "forward_b1_s": stat(0.02 / ratio, 0.001, 30),
        "forward_b1_ratio": stat(ratio, half, 30),
        "prefill_s": stat(0.2 / ratio, 0.01, 30),
        "prefill_ratio": stat(ratio**0.6, half, 30),
        "prefill_tokens_per_s": stat(3500 * ratio, 100, 30),
        "forward_b1_bf16_s": stat(0.012 / ratio, 0.001, 30),
        "forward_b1_bf16_ratio": stat(1.6 * ratio, half, 30),
        "forward_b1_bf16_ratio_bf16": stat(ratio, half, 30),
        "prefill_bf16_ratio": stat(1.6 * ratio**0.6, half, 30),
        "prefill_bf16_ratio_bf16": stat(ratio**0.6, half, 30),
        "train_step_s": stat(0.6, 0.02, 20),
        "train_step_ratio": stat(0.9 + 0.1 * ratio, half, 20),
    }


def accuracy(model: str, order: str, worse: float, rng: random.Random) -> dict[str, Any]:
    if model == "minilm":
        base = {"untouched": 0.734, "features": 0.74, "prompt": 0.77, "full": 0.818}.get(order, 0.802)
        drop = min(0.3, 0.4 * worse) + rng.uniform(-0.003, 0.003)
        distance = 1.5 * worse / (1 + worse)
        return {
            "accuracy": compared(
                base - drop,
                0.025,
                1000,
                base - drop - 0.802,
                0.008 + 0.02 * worse,
                min(1.0, 0.5 * math.exp(-200 * worse)),
            )
            | {"protocol": "held-out blocks", "higher_is_better": True},
            "loss": compared(0.416 + worse, 0.03, 1000, worse, 0.01),
            "cosine_distance": stat(distance, 0.008 * distance, 600),
            "kl_labels": stat(worse, 0.1 * worse, 1000),
            "label_agreement": stat(1 - min(0.4, worse), 0.01, 1000),
        }
    kl = 30 * worse
    grown = math.exp(min(kl * 0.7, 9))
    return {
        "perplexity_wiki": perplexity(26.87, grown, 1.2, 0.3),
        "perplexity_reviews": perplexity(40.1, grown, 1.9, 0.4),
        "kl_wiki": stat(kl, 0.03 * kl, 4096),
        "kl_reviews": stat(1.1 * kl, 0.03 * kl, 4096),
        "top1_wiki": stat(1 / (1 + kl), 0.012, 4096),
        "top1_reviews": stat(1 / (1.1 + kl), 0.012, 4096),
    }


def perplexity(base: float, grown: float, half: float, delta_half: float) -> dict[str, Any]:
    """`grown` times `base`; the half-widths are those at `grown` = 1."""
    ends = {
        f"ratio{end}": grown * (1 + sign * delta_half / base) for end, sign in (("", 0), ("_low", -1), ("_high", 1))
    }
    return compared(base * grown, half * grown, 4096, base * (grown - 1), delta_half * grown) | ends


def weights(model: str, family: str, error: float, rng: random.Random) -> dict[str, Any]:
    if error == 0:
        return {"relative_error": 0.0, "sqnr_db": None, "gap_db": None, "layers": {}, "histogram": None}
    each = {}
    for i, name in enumerate(LINEARS[model]):
        local = error * (1 + 0.3 * math.sin(i)) * rng.uniform(0.85, 1.15)
        each[name] = {"relative_error": local, "sqnr_db": -20 * math.log10(local)}
    edges = [-0.2 + 0.4 * i / 80 for i in range(81)]
    density = [math.exp(-0.5 * ((a + 0.0025) / 0.05) ** 2) / (0.05 * math.sqrt(2 * math.pi)) for a in edges[:-1]]
    wide = max(error * 0.1, 1e-4)
    error_edges = [4 * wide * (-1 + i / 30) for i in range(61)]
    error_density = [math.exp(-0.5 * (a / wide) ** 2) / (wide * math.sqrt(2 * math.pi)) for a in error_edges[:-1]]
    count = 12 if family == "pruning" else 16
    levels = None if family == "none" else [-0.15 + 0.3 * i / (count - 1) for i in range(count)]
    histogram = {
        "layer": LINEARS[model][4],
        "edges": edges,
        "weight_density": density,
        "error_edges": error_edges,
        "error_density": error_density,
        "levels": levels,
    }
    return {
        "relative_error": error,
        "sqnr_db": -20 * math.log10(error),
        "gap_db": rng.uniform(1, 9),
        "layers": each,
        "histogram": histogram,
    }


def sample(quick: bool = False, seeds: int = 1) -> list[dict[str, Any]]:
    """A whole run: every method beneath on two models, QLoRA and merging for a few, references, and failures."""
    records = []
    for model in MODELS:
        for seed in range(seeds):
            for order in ("untouched", "features", "prompt", "full", "lora"):
                records.append(record(model, order, "fp32", seed, quick=quick))
            records += [record(model, "beneath", method, seed, quick=quick) for method in METHODS]
            records += [record(model, "qlora", method, seed, quick=quick) for method in QLORA]
            records += [record(model, o, m, seed, quick=quick) for o in STARTS for m in ("uniform-int2-g64", "nf2")]
            records += [record(model, "merge", method, seed, quick=quick) for method in QLORA[:4]]
    failed = record("smollm2", "beneath", "nm-2-4", quick=quick)
    for block in ("memory", "training_memory", "speed", "accuracy", "weights", "training"):
        failed[block] = None
    failed |= {"status": "oom", "reason": "needed 31.2 GB, free 23.6 GB; try --batch 1"}
    failed["cell"] = failed["cell"] | {"method": "global-90"}
    return [*records, failed]
