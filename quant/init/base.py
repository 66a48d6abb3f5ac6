"""What an initialisation of an adapter is: a base Q in quantized form and factors A, B with Q + B A nearer to W than Q.

Nearness is ||L (W - Q - B A) R||, the norm being Frobenius' and L, R what the method weighs rows and columns by. For
given Q the best B A of a rank is known in closed form; for given B A the quantizer chooses Q; the two alternate.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from quant.core import Calibration, QuantizedTensor, Quantizer
from quant.init.lowrank import nearest_of_rank

__all__ = ["PLAIN", "Init", "Norm", "Start", "alternate"]


class Start(NamedTuple):
    """A quantized base, A [r, k] and B [n, r] in float32: base + B A stands for the weight.

    Directions that the correction does not use have a column of zeros in B and random numbers in the row of A, as in an
    adapter that starts at zero: both at zero would never learn.
    """

    base: QuantizedTensor
    A: Tensor
    B: Tensor


@dataclass(frozen=True)
class Init(ABC):
    """Settings of an initialisation; calling it is pure."""

    source: ClassVar[str] = ""
    idea: ClassVar[str] = ""

    @property
    def needs(self) -> frozenset[str]:
        """The fields of `Calibration` without which it cannot start, beside those that the quantizer needs."""
        return frozenset()

    @abstractmethod
    def _start(
        self, weight: Tensor, quantize: Callable[[Tensor], QuantizedTensor], calibration: Calibration | None, rank: int
    ) -> tuple[QuantizedTensor, Tensor, Tensor]:
        """The base, B [n, s] and A [s, k] with s <= rank, of `weight` [n, k] float32."""

    def __call__(
        self,
        weight: Tensor,
        quantizer: Quantizer,
        calibration: Calibration | None = None,
        rank: int = 8,
        seed: int | None = None,
    ) -> Start:
        """The start for `weight` [n, k]; `seed` draws the unused directions (None: torch's global generator).

        Raises ValueError for a calibration that lacks what is needed, and what the quantizer raises.
        """
        missing = [name for name in sorted(self.needs) if calibration is None or getattr(calibration, name) is None]
        if missing:
            raise ValueError(
                f"{type(self).__name__} needs the calibration's {missing[0]}: gather it with "
                f"quant.calibrate(model, batches, needs={{{missing[0]!r}}}) and pass it on"
            )
        w = weight.detach().float()
        base, b, a = self._start(w, lambda rest: quantizer.quantize(rest, calibration), calibration, rank)
        whole_a = random_a(rank, w.shape[1], seed).to(w.device)
        whole_b = w.new_zeros(w.shape[0], rank)
        whole_a[: len(a)], whole_b[:, : len(a)] = a, b
        return Start(base, whole_a, whole_b)


def random_a(rank: int, k: int, seed: int | None) -> Tensor:
    """The A of an adapter that starts at zero, as in `quant.lora`: Kaiming et al. with a = sqrt(5)."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return nn.init.kaiming_uniform_(torch.empty(rank, k), a=math.sqrt(5), generator=generator)


@dataclass(frozen=True, eq=False)
class Norm:
    """||L E R|| of an error E [n, k]: `left` [n] is diagonal, `right` [k] too, or a matrix [k, d].

    `left_inverse` [n] and `right_inverse` [k] or [d, k] are their pseudo-inverses: what the norm does not see is left
    as it is.
    """

    left: Tensor | None = None
    right: Tensor | None = None
    left_inverse: Tensor | None = None
    right_inverse: Tensor | None = None

    def weighed(self, e: Tensor) -> Tensor:
        """L E R."""
        e = e if self.left is None else self.left[:, None] * e
        return _times(e, self.right)

    def of(self, e: Tensor) -> float:
        """The norm of `e`."""
        return float(torch.linalg.matrix_norm(self.weighed(e)))

    def best(self, e: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """B [n, s] and A [s, k] that minimise ||L (E - B A) R||."""
        b, a = nearest_of_rank(self.weighed(e), rank)
        b = b if self.left_inverse is None else self.left_inverse[:, None] * b
        return _level(b, _times(a, self.right_inverse))


def _times(e: Tensor, right: Tensor | None) -> Tensor:
    if right is None:
        return e
    return e * right if right.ndim == 1 else e @ right


def _level(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with every column of B as long as its row of A, so that both learn alike."""
    root = (a.norm(dim=1) / b.norm(dim=0).clamp(min=1e-30)).sqrt()
    return b * root, a / root.clamp(min=1e-30)[:, None]


PLAIN = Norm()


def alternate(
    weight: Tensor,
    quantize: Callable[[Tensor], QuantizedTensor],
    norm: Norm,
    rank: int,
    rounds: int,
) -> tuple[QuantizedTensor, Tensor, Tensor]:
    """`rounds` times Q = q(W - B A), then the best B A for Q; ended when the error rises, the best pair is returned."""
    best: tuple[float, QuantizedTensor, Tensor, Tensor] | None = None
    update = torch.zeros_like(weight)
    for _ in range(rounds):
        base = quantize(weight - update)
        rest = weight - base.decode()
        b, a = norm.best(rest, rank)
        update = b @ a
        error = norm.of(rest - update)
        if best is not None and not error < best[0]:
            break
        best = error, base, b, a
    assert best is not None
    return best[1:]
