"""Which way a product with a quantized weight [n, k] is taken for m rows of x.

    gemv      one pass over the packed weight, without the matrix unit: for the fewest rows
    product   decoded tile by tile inside the product, on the matrix unit
    dense     decoded once into a temporary copy that the vendor's library multiplies with; it is freed afterwards

The first two never write a dense weight; the third is the faster one where multiplying, not reading, takes the time.
Bounds that were measured on a device, by the class of the weight's size, are in a file of JSON beside its table of
configurations (`kernels.tuned`), as in `{"medium": {"gemv": 1, "dense": 128}}`. Without it a device takes `DEFAULT`, a
prediction that nothing here has measured: the published Triton products fall behind cuBLAS somewhere between 16 and 128
rows on H100 and A100 (GemLite, Marlin), so from 256 rows on none is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from kernels import tuned

__all__ = ["DEFAULT", "ROUTES", "Bounds", "bounds_of", "file_name", "remember", "route", "size_class", "taking"]

ROUTES = ("gemv", "product", "dense")


@dataclass(frozen=True)
class Bounds:
    """`gemv` is taken up to that many rows, `dense` from that many rows on."""

    gemv: int
    dense: int

    def __post_init__(self) -> None:
        if not 0 <= self.gemv < self.dense:
            raise ValueError(f"bounds must be 0 <= gemv < dense, got gemv {self.gemv} and dense {self.dense}")


DEFAULT = Bounds(gemv=1, dense=256)
_FORCED: ContextVar[str | None] = ContextVar("forced", default=None)


def size_class(n: int, k: int) -> str:
    """The class of a weight by its number of values: "small" below 2**23, "medium" below 2**27, else "large".

    The layers of Llama-3-8B are medium, the large ones of Llama-3-70B are large.
    """
    return "small" if n * k < 1 << 23 else "medium" if n * k < 1 << 27 else "large"


def route(m: int, n: int, k: int, device_name: str) -> str:
    """One of `ROUTES` for x [m, k] and a weight [n, k] on the device of that name."""
    forced = _FORCED.get()
    if forced is not None:
        return forced
    bounds, _ = bounds_of(n, k, device_name)
    return "dense" if m >= bounds.dense else "gemv" if m <= bounds.gemv else "product"


def bounds_of(n: int, k: int, device_name: str) -> tuple[Bounds, str]:
    """The bounds for a weight [n, k] on the device of that name, and what they are: "measured" or "predicted"."""
    found = _measured(device_name).get(size_class(n, k))
    return (DEFAULT, "predicted") if found is None else (found, "measured")


def file_name(device_name: str) -> str:
    """The file of a device's bounds.

    >>> file_name("NVIDIA H200")
    'nvidia-h200.routes.json'
    """
    return f"{Path(tuned.file_name(device_name)).stem}.routes.json"


def remember(device_name: str, bounds: Mapping[str, Bounds]) -> Path:
    """Write the bounds of a device, by the class of the size, to the user's folder; the file."""
    file = tuned.user_folder() / file_name(device_name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({size: asdict(b) for size, b in bounds.items()}, indent=1, sort_keys=True) + "\n")
    _measured.cache_clear()
    return file


@cache
def _measured(device_name: str) -> Mapping[str, Bounds]:
    for folder in (tuned.user_folder(), tuned.SHIPPED):
        try:
            table = json.loads((folder / file_name(device_name)).read_text())
            return {size: Bounds(**bounds) for size, bounds in table.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            continue
    return {}


@contextmanager
def taking(name: str) -> Iterator[None]:
    """Every product inside takes the route `name`, for timing one against another; ValueError for an unknown one.

    "gemv" and "product" both leave the choice between those two to the kernel: it knows how many rows it can take.
    """
    if name not in ROUTES:
        raise ValueError(f"unknown route {name!r}; known: {', '.join(ROUTES)}")
    token = _FORCED.set(name)
    try:
        yield
    finally:
        _FORCED.reset(token)
