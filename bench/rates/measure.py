"""One record: a method on the samples of a source.

    relative_mse   mean e**2 / mean w**2                              e = decoded - w, for every sample
    bits           stored bits a weight, per-tensor constants left out
    entropy_bits   the same with codes and masks at their order-0 entropy
    gap_db         10 log10(mean e**2 / bound(mean w**2, bits))        entropy_gap_db: at entropy_bits

A method that needs a calibration is given the neutral one (independent inputs of unit size, weights that matter
alike) and so shows its grid, not what it is for; `calibration` says so. A rule over a model sees the samples as its
layers.
"""

from __future__ import annotations

import math
import time
from typing import Any

from torch import Tensor

from bench.rates.sources import Source
from quant import Calibration, Quantizer, UnsupportedError
from quant.entropy import entropy_bits

__all__ = ["measure"]

NAMES = ("bits", "entropy_bits", "relative_mse", "gap_db", "entropy_gap_db")


def measure(method: str, quantizer: Quantizer, source: Source) -> dict[str, Any]:
    """The record of `quantizer`, registered as `method`; "unsupported" where it refuses a sample, with the reason."""
    head = {
        "source": source.name,
        "method": method,
        "family": quantizer.family,
        "calibration": "neutral" if quantizer.needs else None,
        "sample": source.said,
    }
    begin = time.perf_counter()
    try:
        weights = {str(i): weight for i, weight in enumerate(source.draw())}
        known = {name: Calibration.neutral(*w.shape) for name, w in weights.items()} if quantizer.needs else None
        fitted = quantizer.for_layers(weights, known)
        samples = [_figures(fitted[n], w, source, known[n] if known else None) for n, w in weights.items()]
    except UnsupportedError as error:
        return head | {"status": "unsupported", "reason": str(error)}
    except Exception as error:  # one method does not cost the others their figures
        return head | {"status": "error", "reason": f"{type(error).__name__}: {error}"}
    figures = {name: [sample[name] for sample in samples] for name in NAMES}
    return head | {"status": "ok", "seconds": round(time.perf_counter() - begin, 3)} | figures


def _figures(
    quantizer: Quantizer, weight: Tensor, source: Source, known: Calibration | None
) -> dict[str, float | None]:
    stored = quantizer.quantize(weight, known if quantizer.needs else None)
    variance = float(weight.double().square().mean())
    error = float((stored.decode() - weight).double().square().mean())
    rates = (stored.bits_per_weight, entropy_bits(stored))
    gaps = [10 * math.log10(error / source.bound(variance, rate)) if error else None for rate in rates]
    return dict(zip(NAMES, (*rates, error / variance, *gaps), strict=True))
