"""Settings of a low-rank adapter, and the seeds of its factors."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch

from quant.core import Quantizer

__all__ = ["LoRAConfig"]


@dataclass(frozen=True)
class LoRAConfig:
    """Settings of an adapter.

    `targets` is "all" (every linear layer that `quant.linears` finds) or the ends of layer names ("q_proj",
    "attention.self.query"). `also_train` names further modules (a classification head) that are trained whole beside
    the adapter and stored with it. With `seed` the factors depend on it and the layer's name only, otherwise on
    torch's global generator. With `quantizer` the factors are seen through it during training (gradients pass
    straight through), ready for `quantize_adapter`. `pooled` adapters read sums over the groups of an affine base
    (see `quant.pooled`) and merge into its zero points.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: tuple[str, ...] | str = "all"
    seed: int | None = None
    quantizer: Quantizer | None = None
    also_train: tuple[str, ...] = ()
    pooled: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank must be a positive integer, got {self.rank!r}")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be positive and finite, got {self.alpha!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")
        if self.targets != "all" and (isinstance(self.targets, str) or not self.targets):
            raise ValueError(f"targets must be 'all' or a tuple of layer names, got {self.targets!r}")
        if isinstance(self.also_train, str):
            raise ValueError(f"also_train must be a tuple of module names, got {self.also_train!r}")
        if self.pooled and self.quantizer is not None:
            raise ValueError("pooled adapters merge into zero points and are not seen through a quantizer")

    @property
    def scaling(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank

    def seed_of(self, name: str) -> int | None:
        """The seed of the factors of the layer `name`; None for torch's global generator."""
        return None if self.seed is None else zlib.crc32(f"{self.seed}/{name}".encode())

    def generator(self, name: str) -> torch.Generator | None:
        """The generator that draws the factors of the layer `name`."""
        seed = self.seed_of(name)
        return None if seed is None else torch.Generator().manual_seed(seed)
