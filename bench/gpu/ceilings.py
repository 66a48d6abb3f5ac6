"""What this device can do at all, measured in the same run: bytes a second of a copy, operations a second of a product.

A copy counts the bytes read and the bytes written. The product is bfloat16, of random numbers: on zeros a GPU draws
less power and runs faster. Figures of a data sheet are not used anywhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench.gpu.timing import Watch
from bench.measure.stats import stat

__all__ = ["Ceilings", "measure_ceilings"]

ROUNDS = 11


@dataclass(frozen=True)
class Ceilings:
    """Rates, as stats, with the sizes they were measured at."""

    copy_bytes_per_s: dict[str, Any]
    product_flop_per_s: dict[str, Any]
    copied_bytes: int
    product_side: int

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return float(self.copy_bytes_per_s["value"])

    @property
    def product(self) -> float:
        """Operations a second; a multiplication with its addition counts two."""
        return float(self.product_flop_per_s["value"])

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_ceilings(watch: Watch, copied: int = 2 << 30, side: int = 8192) -> Ceilings:
    """Time a copy of `copied` bytes and a product of two [side, side] matrices on the device of `watch`."""
    copies = [2 * copied / s for s in _copies(watch, copied)]
    products = [2 * side**3 / s for s in _products(watch, side)]
    return Ceilings(stat(copies), stat(products), copied, side)


def _copies(watch: Watch, size: int) -> list[float]:
    source = torch.randint(255, (size,), dtype=torch.uint8, device=watch.device)
    target = torch.empty_like(source)
    return [watch.once(lambda: target.copy_(source))[0] for _ in range(ROUNDS + 3)][3:]


def _products(watch: Watch, side: int) -> list[float]:
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=watch.device) for _ in range(2))
    return [watch.once(lambda: a @ b)[0] for _ in range(ROUNDS + 3)][3:]
