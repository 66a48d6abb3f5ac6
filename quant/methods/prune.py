"""Pruning: the smallest weights become zero, and any quantizer stores those that are kept.

unstructured  the share `sparsity` of smallest magnitude, in every layer or over the whole model (Han et al. 2015, arXiv
              1506.02626; global: Frankle and Carbin 2019, arXiv 1803.03635)
n:m           of every m consecutive weights of a row the n largest are kept (Mishra et al. 2021, arXiv 2104.08378)
rows          the rows of smallest Euclidean norm (after Li et al. 2017, arXiv 1608.08710, who prune filters)

The counts are exact: of equal magnitudes the first in row-major order go first. Sparsity 0 keeps all, 1 keeps nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer, checked, register
from quant.formats import BitMask, KeptRows, NofM
from quant.methods.nf4 import NF
from quant.methods.none import Unquantized
from quant.methods.uniform import Uniform

__all__ = ["Magnitude", "NOfM", "Pruning", "Rows", "keep_largest", "keep_where", "pattern", "smallest"]

BF16 = Unquantized("bfloat16")
LOW = 15  # bits of a float32 magnitude that the second counting pass tells apart


@dataclass(frozen=True)
class Pruning(Quantizer):
    """`values` is the quantizer of the kept weights."""

    @property
    def family(self) -> str:
        return "pruning"


@dataclass(frozen=True)
class Magnitude(Pruning):
    """Prune the share `sparsity` of smallest magnitude, `scope` "layer" or "global".

    A global one takes `threshold` from `for_layers`: below it all weights of the model go, and of those equal to it the
    share `ties` in every layer, so that the model's count is exact to one weight a layer. Without `for_layers` the
    model is the one layer.
    """

    sparsity: float = 0.5
    scope: str = "layer"
    values: Quantizer = BF16
    threshold: float | None = None
    ties: float = 0.0

    source = "Han et al. 2015, arXiv 1506.02626"
    idea = "the smallest weights are zero, one bit a weight says which"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.scope not in ("layer", "global"):
            raise ValueError(f"scope must be 'layer' or 'global', got {self.scope!r}")
        if self.threshold is not None and self.scope != "global":
            raise ValueError(f"a threshold ({self.threshold}) needs scope 'global'")
        if not 0 <= self.ties <= 1:
            raise ValueError(f"ties must be 0..1, got {self.ties}")

    def for_layers(
        self, weights: Mapping[str, Tensor], calibration: Mapping[str, Calibration] | None = None
    ) -> Mapping[str, Quantizer]:
        if self.scope == "layer":
            return dict.fromkeys(weights, self)
        layers = list({id(w): w for w in weights.values()}.values())
        count = round(self.sparsity * sum(w.numel() for w in layers))
        threshold, below, equal = smallest(layers, count)
        fitted = dataclasses.replace(self, threshold=threshold, ties=(count - below) / equal if equal else 0.0)
        return dict.fromkeys(weights, fitted)

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        size = weight.abs()
        if self.threshold is None:
            count = round(self.sparsity * weight.numel())
            threshold, below, _ = smallest([weight], count)
            tied = count - below
        else:
            threshold = self.threshold
            tied = round(self.ties * int((size == threshold).sum()))
        keep = size >= threshold
        if tied:
            keep.view(-1)[(size.view(-1) == threshold).nonzero()[:tied, 0]] = False
        return keep_where(weight, keep, self.values)


def keep_where(weight: Tensor, keep: Tensor, values: Quantizer) -> BitMask:
    """The weights [n, k] where `keep` [n, k] bool is set, stored by `values` in row-major order."""
    kept = weight[keep]
    n, k = weight.shape
    mask = pack(keep.to(torch.uint8), 1)
    return BitMask((n, k), torch.float32, mask, values.quantize(kept[None]) if len(kept) else None)


def smallest(weights: Sequence[Tensor], count: int) -> tuple[float, int, int]:
    """The magnitude of the `count`-th smallest of all `weights`, how many lie below it, how many equal it.

    Two counting passes over the bits of the float32 magnitudes, which are ordered as the magnitudes are: memory and
    time do not depend on a sort. With `count` 0 it is (0, 0, 0): nothing lies below zero.
    """
    if count == 0:
        return 0.0, 0, 0
    found, below = 0, 0
    for shift, bins in ((LOW, 1 << (31 - LOW)), (0, 1 << LOW)):
        seen = torch.zeros(bins, dtype=torch.int64)
        for w in weights:
            bits = checked(w).abs_().view(torch.int32).flatten()
            if not shift:
                bits = bits[(bits >> LOW) == found] & ((1 << LOW) - 1)
            seen += torch.bincount(bits >> shift, minlength=bins).cpu()
        total = seen.cumsum(0) + below
        bin_ = int(torch.searchsorted(total, count))
        below = int(total[bin_] - seen[bin_])
        found = (found << LOW) | bin_
    threshold = torch.tensor(found, dtype=torch.int32).view(torch.float32)
    return float(threshold), below, int(seen[bin_])


@dataclass(frozen=True)
class NOfM(Pruning):
    """Keep the `n` largest of every `m` consecutive weights of a row; m up to 256."""

    n: int = 2
    m: int = 4
    values: Quantizer = BF16

    source = "Mishra et al. 2021, arXiv 2104.08378"
    idea = "the n largest of every m weights are kept, with their places"

    def __post_init__(self) -> None:
        check_n_of_m(self.n, self.m)

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        return keep_largest(weight, weight.abs(), self.n, self.m, self.values)


def keep_largest(weight: Tensor, score: Tensor, n: int, m: int, values: Quantizer) -> NofM:
    """Of every `m` weights of a row those of the `n` largest scores, stored by `values`; `score` [rows, k] >= 0."""
    rows, k = weight.shape
    short = -k % m
    cells = torch.nn.functional.pad(weight, (0, short)).reshape(rows, -1, m)
    size = torch.nn.functional.pad(score, (0, short), value=-1.0).reshape(rows, -1, m)
    places = _largest(size, n)
    kept = cells.gather(2, places).flatten(1)
    indices = pack(places.flatten(1).to(torch.uint8), (m - 1).bit_length())
    return NofM((rows, k), torch.float32, indices, values.quantize(kept), n, m)


def _largest(size: Tensor, n: int) -> Tensor:
    """Places [.., n], ascending, of the `n` largest of [.., m]; of equals the last are kept, as in `Magnitude`."""
    order = size.argsort(stable=True)
    places: Tensor = order[..., -n:].sort(-1).values
    return places


@dataclass(frozen=True)
class Rows(Pruning):
    """Prune the share `sparsity` of the rows, those of smallest Euclidean norm."""

    sparsity: float = 0.1
    values: Quantizer = BF16

    source = "Li et al. 2017, arXiv 1608.08710"
    idea = "the rows of smallest norm are zero"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        keep = torch.ones(n, dtype=torch.bool, device=weight.device)
        order = weight.double().norm(dim=1).argsort(stable=True)
        keep[order[: round(self.sparsity * n)]] = False
        kept = weight[keep]
        values = self.values.quantize(kept) if len(kept) else None
        return KeptRows((n, k), torch.float32, pack(keep[None].to(torch.uint8), 1), values)


def check_sparsity(sparsity: float) -> None:
    """Raise ValueError unless `sparsity` is 0 (keep all) to 1 (keep nothing)."""
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be 0 (keep all) to 1 (keep nothing), got {sparsity}")


def check_n_of_m(n: int, m: int) -> None:
    """Raise ValueError unless `n` of every `m` weights can be kept."""
    if not 1 <= n <= m or not 2 <= m <= 256:
        raise ValueError(f"cannot keep {n} of {m}: need 1 <= n <= m and m 2..256")


def pattern(sparsity: float | str) -> tuple[int, int] | None:
    """(n, m) of "n:m", which keeps n of every m weights; None of a share that is pruned. ValueError for others.

    >>> pattern("2:4"), pattern(0.5)
    ((2, 4), None)
    """
    if not isinstance(sparsity, str):
        check_sparsity(sparsity)
        return None
    n, colon, m = sparsity.partition(":")
    if not (colon and n.isdecimal() and m.isdecimal()):
        raise ValueError(f"sparsity must be a share from 0 to 1 or a pattern such as '2:4', got {sparsity!r}")
    check_n_of_m(int(n), int(m))
    return int(n), int(m)


for _percent in (30, 50, 70):
    register(f"prune-{_percent}", Magnitude(_percent / 100))
register("prune-50-global", Magnitude(0.5, "global"))
register("prune-50-int4-g64", Magnitude(0.5, values=Uniform(4, 64)))
register("prune-50-nf4-g64", Magnitude(0.5, values=NF(bits=4, group=64)))
register("prune-2of4", NOfM(2, 4))
register("prune-4of8", NOfM(4, 8))
register("prune-2of4-int4-g64", NOfM(2, 4, values=Uniform(4, 64)))
register("prune-rows-10", Rows(0.1))
