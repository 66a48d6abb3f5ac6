"""One record: a method on the samples of a source.

    relative_mse   mean e**2 / mean w**2                              e = decoded - w, for every sample
    bits           stored bits a weight, per-tensor constants left out
    entropy_bits   the same with codes and masks at their order-0 entropy
    gap_db         10 log10(mean e**2 / bound(mean w**2, bits))        entropy_gap_db: at entropy_bits

Of a source that knows the inputs x of its layers, by their second moment H = E[x x^T], also the error of the outputs:

    output_error   mean e H e^T / mean w H w^T                         means over rows
    output_gap_db  10 log10(mean e H e^T / k / D), D the least that any code of independent Gaussian weights of mean
                   w**2 can leave at these bits: reverse water-filling over the eigenvalues of H (Cover and Thomas,
                   Elements of Information Theory, 10.3.3)

Weights without a model have no calibration and are no layers of one: methods that need either are skipped on them.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from bench.rates.sources import Source
from quant import Calibration, Quantizer, UnsupportedError
from quant.entropy import entropy_bits

__all__ = ["measure", "water_filling"]

NAMES = ("bits", "entropy_bits", "relative_mse", "gap_db", "entropy_gap_db", "output_error", "output_gap_db")
_spectra: dict[tuple[str, str], Tensor] = {}


def measure(method: str, quantizer: Quantizer, source: Source) -> dict[str, Any]:
    """The record of `quantizer`, registered as `method`; "unsupported" where it refuses a sample and "skipped" where
    the source cannot tell what it must know, with the reason."""
    head = {
        "source": source.name,
        "method": method,
        "family": quantizer.family,
        "calibration": ", ".join(sorted(need.replace("_", " ") for need in quantizer.needs)) or None,
        "sample": source.said,
    }
    begin = time.perf_counter()
    if quantizer.needs and source.known is None:
        return head | {"status": "skipped", "reason": "it needs a calibration, and these weights are of no model"}
    try:
        weights = {str(i): weight for i, weight in enumerate(source.draw())}
        known = _known(weights, quantizer, source)
        fitted = quantizer.for_layers(weights, known if quantizer.needs else None)
        if source.known is None and any(one != quantizer for one in fitted.values()):
            return head | {"status": "skipped", "reason": "a rule over a model, and these weights are of none"}
        samples = [_figures(fitted[n], w, source, n, known.get(n)) for n, w in weights.items()]
    except UnsupportedError as error:
        return head | {"status": "unsupported", "reason": str(error)}
    except Exception as error:  # one method does not cost the others their figures
        return head | {"status": "error", "reason": f"{type(error).__name__}: {error}"}
    figures = {name: [sample[name] for sample in samples] for name in NAMES}
    return head | {"status": "ok", "seconds": round(time.perf_counter() - begin, 3)} | figures


def _known(weights: dict[str, Tensor], quantizer: Quantizer, source: Source) -> dict[str, Calibration]:
    return {} if source.known is None else dict(zip(weights, source.known(quantizer.needs), strict=True))


def _figures(
    quantizer: Quantizer, weight: Tensor, source: Source, name: str, known: Calibration | None
) -> dict[str, float | None]:
    stored = quantizer.quantize(weight, known if quantizer.needs else None)
    difference = stored.decode().double() - weight.double()
    variance = float(weight.double().square().mean())
    error = float(difference.square().mean())
    rates = (stored.bits_per_weight, entropy_bits(stored))
    gaps = [10 * math.log10(error / source.bound(variance, rate)) if error else None for rate in rates]
    output: tuple[float | None, float | None] = None, None
    if known is not None and known.second_moment is not None and error:
        moment = known.second_moment.double()
        lost, whole = (float((m @ moment * m).sum(1).mean()) for m in (difference, weight.double()))
        least = water_filling(variance * _spectrum(source.name, name, moment), rates[0])
        output = lost / whole, 10 * math.log10(lost / weight.shape[1] / least)
    return dict(zip(NAMES, (*rates, error / variance, *gaps, *output), strict=True))


def _spectrum(source: str, name: str, moment: Tensor) -> Tensor:
    """The eigenvalues of the sample's second moment, computed once in this process."""
    if (source, name) not in _spectra:
        _spectra[source, name] = torch.linalg.eigvalsh(moment)
    return _spectra[source, name]


def water_filling(variances: Tensor, bits: float) -> float:
    """The least mean squared error of independent Gaussian components [k] at `bits` a component on average:
    min(level, variance) of each, the level such that the components above it take all the bits."""
    v = variances.double().clamp(min=1e-300).sort(descending=True).values
    k = len(v)
    taking = torch.arange(1, k + 1, dtype=torch.float64)
    level = torch.exp2((v.log2().cumsum(0) - 2 * k * bits) / taking)  # were these many components above it
    count = int((level < v).nonzero()[-1]) + 1 if bits > 0 else 0
    water = float(level[count - 1]) * count if count else 0.0
    return (water + float(v[count:].sum())) / k
