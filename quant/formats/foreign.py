"""A weight in the form of another library: its tensors, and that library's own way back to the dense weight.

It serves comparisons: bytes are counted from the tensors that the library stores, errors come from its decoder. The way
back lives in the process that made the weight, so such a weight cannot be read from a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from quant.core import QuantizedTensor

__all__ = ["Foreign"]

Decoder = Callable[[Sequence[Tensor]], Tensor]
SLOTS = ("a", "b", "c", "d", "e", "f")
_KNOWN: dict[int, tuple[Decoder, tuple[str, ...]]] = {}
_TICKETS = itertools.count()


@dataclass(frozen=True, eq=False)
class Foreign(QuantizedTensor, format="foreign"):
    """Up to six stored tensors; `library` names who stores them so, `ticket` how this process decodes them."""

    a: Tensor
    b: Tensor | None
    c: Tensor | None
    d: Tensor | None
    e: Tensor | None
    f: Tensor | None
    library: str
    ticket: int

    stored_parts: ClassVar[Mapping[str, str]] = dict.fromkeys(SLOTS, "codes")

    @classmethod
    def made(cls, weight: Tensor, library: str, parts: Sequence[tuple[str, Tensor]], decoder: Decoder) -> Foreign:
        """What `library` stores for `weight` [n, k]: (part of `quant.PARTS`, tensor) pairs, which `decoder` takes."""
        if not 0 < len(parts) <= len(SLOTS):
            raise ValueError(f"{library} stores {len(parts)} tensors; 1 to {len(SLOTS)} are possible")
        ticket = next(_TICKETS)
        _KNOWN[ticket] = decoder, tuple(part for part, _ in parts)
        tensors = [t for _, t in parts] + [None] * (len(SLOTS) - len(parts))
        n, k = weight.shape
        return cls((n, k), weight.dtype, *tensors, library, ticket)  # type: ignore[arg-type, call-arg]

    def __post_init__(self) -> None:
        if self.ticket not in _KNOWN:
            raise ValueError(f"a weight stored by {self.library} can be read only by the process that made it")

    def parts(self) -> dict[str, int]:
        out: dict[str, int] = {}
        for part, tensor in zip(_KNOWN[self.ticket][1], self.stored().values(), strict=True):
            out[part] = out.get(part, 0) + tensor.nbytes
        return out

    def decode(self) -> Tensor:
        return _KNOWN[self.ticket][0](list(self.stored().values())).float().reshape(self.shape)
