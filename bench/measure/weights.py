"""How far the decoded weights are from the originals.

With e = decoded - w, over the layers l with n_l weights stored at R_l bits each (per-tensor constants left out):

    relative_error  sqrt(sum |e|**2 / sum |w|**2)           energies are summed over the layers, then divided
    sqnr_db         10 log10(sum |w|**2 / sum |e|**2)
    gap_db          10 log10(sum |e|**2 / sum_l |w_l|**2 4**-R_l)

The denominator of the gap is the least error with which independent Gaussian weights can be stored at those rates
(D(R) = variance * 4**-R: Cover & Thomas, Elements of Information Theory, 10.3), the variance of a layer being its mean
square, that is, about zero and over the whole tensor. For one layer it is 6.02 R - sqnr_db. Weights whose rows differ
in size, or that are mostly zero, are easier than Gaussian ones, so the gap may be negative.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.measure.histogram import histogram
from quant import QuantizedTensor

__all__ = ["weight_errors"]

CHUNK = 1 << 16  # weights a step: three float32 pieces stay in the cache, and no float32 sum grows long


def weight_errors(
    pairs: Iterable[tuple[str, Tensor, QuantizedTensor]],
    *,
    decoded: Mapping[str, Tensor] | None = None,
    histogram_layer: str | None = None,
) -> dict[str, Any]:
    """The record's `weights` group from (name, weight [n, k], quantized weight) of each layer.

    Each layer is decoded once, or not at all where `decoded` holds its float weight [n, k]. `histogram_layer` names
    the layer of the histogram (default: the first). What is undefined is null beside a reason: an exact decoding has
    no sqnr_db, a weight of zeros no relative error.
    """
    decoded = decoded or {}
    layers: dict[str, dict[str, Any]] = {}
    shown: dict[str, Any] | None = None
    signal = noise = bound = 0.0
    for name, weight, quantized in pairs:
        if name in layers:
            raise ValueError(f"layer {name!r} is named twice")
        original = weight.detach().float()
        restored = decoded[name].detach() if name in decoded else quantized.decode()
        if original.shape != restored.shape or tuple(original.shape) != quantized.shape:
            raise ValueError(f"layer {name!r}: weight {list(original.shape)}, decoded {list(restored.shape)}")
        restored = restored.float()
        energy, error = _energies(original, restored)
        layers[name] = _errors(energy, error)
        signal, noise = signal + energy, noise + error
        bound += energy * 4.0**-quantized.bits_per_weight
        if name == histogram_layer or (histogram_layer is None and shown is None):
            shown = {"layer": name} | histogram(original, restored, quantized)
    if not layers:
        raise ValueError("no layer to compare")
    if shown is None:
        raise ValueError(f"histogram_layer {histogram_layer!r} is not among the layers: {', '.join(sorted(layers))}")
    total = _errors(signal, noise)
    gap = None if total["sqnr_db"] is None else 10 * math.log10(noise / bound)
    reason = {} if gap is not None else {"gap_reason": total["reason"]}
    return total | {"gap_db": gap} | reason | {"layers": layers, "histogram": shown}


def _energies(original: Tensor, restored: Tensor) -> tuple[float, float]:
    """(sum w**2, sum (decoded - w)**2), summed in float64 over pieces of `CHUNK`."""
    energy = error = 0.0
    for w, d in zip(torch.split(original.flatten(), CHUNK), torch.split(restored.flatten(), CHUNK), strict=True):
        energy += _energy(w)
        error += _energy(d - w)
    return energy, error


def _energy(v: Tensor) -> float:
    total = float(torch.dot(v, v))
    if 1e-20 < total < math.inf:
        return total
    v = v.double()  # squares below or beyond the range of float32
    return float(torch.dot(v, v))


def _errors(energy: float, error: float) -> dict[str, Any]:
    out: dict[str, Any] = {"relative_error": None, "sqnr_db": None}
    if not (math.isfinite(energy) and math.isfinite(error)):
        return out | {"reason": "a squared weight or error is not finite"}
    if energy == 0:
        return out | {"reason": "every weight is zero"}
    out["relative_error"] = math.sqrt(error / energy)
    if error == 0:
        return out | {"reason": "the decoded weights are exact"}
    out["sqnr_db"] = 10 * math.log10(energy / error)
    return out
