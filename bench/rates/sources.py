"""Weights to be stored, and the least error with which weights of that kind can be stored at a rate of R bits.

The bound is variance * floor * 4**-R. Of independent Gaussian weights that is D(R) itself, floor = 1 (Cover and Thomas,
Elements of Information Theory, 10.3). Of Laplacian ones it is the Shannon lower bound, floor = e / pi = 0.865, which
D(R) approaches from above: at 2 bits they are 0.06 dB apart, at 3 bits less than 0.01 (tests/bench/test_rates.py finds
D(R) by the Blahut-Arimoto iteration). Of a model's weights D(R) is not known; that of independent Gaussian weights of
the same variance bounds it from above, so a gap to it may be negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quant import METHODS, Calibration

__all__ = ["SEEDS", "SHAPE", "SOURCES", "Source", "source"]

SHAPE = (256, 1024)
SEEDS = 3
MODEL = "smollm2"
TASK = "reviews"  # on whose texts the model is calibrated, as in the benchmark
PLACES = ((3, "self_attn.q_proj"), (15, "mlp.up_proj"), (27, "mlp.down_proj"))  # block and matrix of each sample


@dataclass(frozen=True)
class Source:
    """`draw` gives the samples [n, k] float32, one for every seed; `said` is what a reader must know of them."""

    name: str
    title: str
    said: str
    floor: float
    draw: Callable[[], Iterator[Tensor]]
    content: Callable[[], Any] = lambda: None  # what the samples depend on besides this file
    known: Callable[[frozenset[str]], Sequence[Calibration]] | None = None  # of each sample; with these statistics too

    def bound(self, variance: float, bits: float) -> float:
        """The least mean squared error at `bits` a weight."""
        return variance * self.floor / math.pow(4.0, bits)


def gaussian() -> Iterator[Tensor]:
    for seed in range(SEEDS):
        yield torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def laplace() -> Iterator[Tensor]:
    """Of unit variance: the difference of two exponential variables of mean 2**-0.5."""
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        one, other = (torch.empty(SHAPE).exponential_(2**0.5, generator=generator) for _ in range(2))
        yield one - other


def model() -> Iterator[Tensor]:
    """The first rows of a matrix from the beginning, the middle and the end of the model."""
    from bench.models import load

    layers = load(MODEL).module.model.layers  # type: ignore[union-attr, operator]
    for block, name in PLACES:
        yield layers[block].get_submodule(name).weight.detach()[: SHAPE[0]].clone()  # type: ignore[index, union-attr]


def model_known(statistics: frozenset[str]) -> list[Calibration]:
    """The model's stored calibration at the rows of each sample: always of the inputs, and `statistics` too."""
    from bench.baseline import setting_of
    from bench.calibration import calibration_of
    from bench.protocol import Protocol

    setting = setting_of(MODEL, TASK, Protocol(), 0)
    stored = calibration_of(setting, METHODS["fp32"], also=statistics | {"second_moment", "magnitude"})
    assert stored is not None
    found = [stored[f"model.layers.{block}.{name}"] for block, name in PLACES]
    rows = [None if one.fisher is None else one.fisher[: SHAPE[0]] for one in found]
    return [
        Calibration(one.second_moment, one.magnitude, fisher, one.n_samples)
        for one, fisher in zip(found, rows, strict=True)
    ]


def fingerprint() -> Any:
    from bench.baseline import ROOT
    from bench.baseline import SOURCES as TRAINED
    from bench.calibration import SOURCES as GATHERED
    from bench.models import fingerprint
    from bench.models.fingerprint import digest_of
    from bench.protocol import Protocol

    sources = digest_of(path for pattern in (*TRAINED, *GATHERED) for path in ROOT.glob(pattern))
    return [fingerprint(MODEL), *PLACES, TASK, Protocol().settings(), sources]


SIZES = f"{SEEDS} samples of {SHAPE[0]} x {SHAPE[1]} weights"
SOURCES = (
    Source("gaussian", "N(0, 1)", f"{SIZES}; the bound is D(R) = 4^-R", 1.0, gaussian),
    Source(
        "laplace", "Laplace", f"{SIZES}, unit variance; the bound is Shannon's, (e/pi) 4^-R", math.e / math.pi, laplace
    ),
    Source(
        "model",
        f"the weights of {MODEL}",
        f"the first {SHAPE[0]} rows of "
        + ", ".join(f"{name} of block {block}" for block, name in PLACES)
        + "; the bound is D(R) of independent Gaussian weights of the same variance, which is above their own; "
        f"calibrated on the texts of {TASK} as in the benchmark, a rule over a model seeing these matrices alone",
        1.0,
        model,
        fingerprint,
        model_known,
    ),
)


def source(name: str) -> Source:
    """The source called `name`; ValueError names the known ones."""
    known = {s.name: s for s in SOURCES}
    if name not in known:
        raise ValueError(f"unknown source {name!r}; known: {', '.join(known)}")
    return known[name]
