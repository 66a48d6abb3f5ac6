"""Pruning by weights and inputs: a weight's score is |W_ij| times the norm of its input, ||X_j||_2.

With independent inputs the square of the score is what pruning the weight costs the output. Scores are compared inside
each row, from which the share `sparsity` of lowest score goes, or inside each run of m weights of it. The norm is the
root of the second moment's diagonal, so scores are per sample. Of equal scores the first go.
Source: Sun et al. 2023, arXiv 2306.11695.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.methods.prune import BF16, Pruning, keep_largest, keep_where, pattern

__all__ = ["CalibratedPruning", "Wanda", "input_norms"]


@dataclass(frozen=True)
class CalibratedPruning(Pruning):
    """`sparsity` is the share that is pruned, or a pattern "n:m": n of every m consecutive weights are kept."""

    sparsity: float | str = 0.5
    values: Quantizer = BF16

    def __post_init__(self) -> None:
        pattern(self.sparsity)
        if self.values.needs:
            raise ValueError(
                f"values cannot be {type(self.values).__name__}: it needs {', '.join(sorted(self.values.needs))}, "
                "which is known of whole rows and not of the weights that are kept"
            )

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"second_moment"}


@dataclass(frozen=True)
class Wanda(CalibratedPruning):
    """Weights stay as they are; the score alone decides which are kept."""

    source = "Sun et al. 2023 (Wanda), arXiv 2306.11695"
    idea = "the weights of smallest |w| times input norm are zero, in every row alike"

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        assert calibration is not None
        score = weight.abs() * input_norms(calibration).to(weight.device)
        if at := pattern(self.sparsity):
            return keep_largest(weight, score, *at, self.values)
        assert not isinstance(self.sparsity, str)
        keep = torch.ones_like(weight, dtype=torch.bool)
        order = score.argsort(dim=1, stable=True)
        keep.scatter_(1, order[:, : round(self.sparsity * weight.shape[1])], False)
        return keep_where(weight, keep, self.values)


def input_norms(calibration: Calibration) -> Tensor:
    """Root mean square [k] of every input of the layer."""
    assert calibration.second_moment is not None
    return calibration.second_moment.diagonal().clamp(min=0).sqrt()


register("wanda-50", Wanda(0.5))
register("wanda-70", Wanda(0.7))
register("wanda-2of4", Wanda("2:4"))
