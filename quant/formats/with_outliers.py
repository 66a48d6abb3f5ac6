"""Dense and sparse: W = inner + S, S the few weights that are stored apart, in rows compressed (CSR).

S holds what is missing at its places, w - inner.decode(), so the sum there is the weight but for rounding. A place
costs its value and its column index, a row one pointer.
Source: Kim et al. 2023 (SqueezeLLM), arXiv 2306.07629, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quant.core import QuantizedTensor
from quant.formats.composed import Composed
from quant.grouping import store_scale

__all__ = ["WithOutliers"]


@dataclass(frozen=True, eq=False)
class WithOutliers(Composed, format="with-outliers"):
    """`values` [s] floating and `columns` [s] int16 or int32, row by row; row i has those from `rows`[i] on.

    `rows` is [n + 1] int32. int16 indices stand for columns below 32768.
    """

    values: Tensor
    columns: Tensor
    rows: Tensor

    stored_parts: ClassVar[dict[str, str]] = {
        "inner": "inherit",
        "values": "unquantized",
        "columns": "mask",
        "rows": "mask",
    }

    def __post_init__(self) -> None:
        n, k = self.shape
        if self.inner.shape != self.shape:
            raise ValueError(f"the inner weight must be {[n, k]}, got {list(self.inner.shape)}")
        if self.values.ndim != 1 or not self.values.dtype.is_floating_point:
            raise ValueError(f"values must be floating [s], got {self.values.dtype} {list(self.values.shape)}")
        if self.columns.shape != self.values.shape or self.columns.dtype not in (torch.int16, torch.int32):
            raise ValueError(
                f"columns must be int16 or int32 {list(self.values.shape)}, got {self.columns.dtype} "
                f"{list(self.columns.shape)}"
            )
        if self.columns.dtype == torch.int16 and k > 1 << 15:
            raise ValueError(f"int16 columns reach 32768, the weight has {k}: use int32")
        if tuple(self.rows.shape) != (n + 1,) or self.rows.dtype != torch.int32:
            raise ValueError(f"rows must be int32 [{n + 1}], got {self.rows.dtype} {list(self.rows.shape)}")

    @classmethod
    def store(cls, inner: QuantizedTensor, weight: Tensor, places: Tensor, dtype: torch.dtype) -> WithOutliers:
        """`inner` with what it lacks of `weight` [n, k] at the sorted flat `places` [s] int64; columns in `dtype`.

        Values are float16, or float32 where that could not hold them, as for scales.
        """
        n, k = inner.shape
        missing = (weight - inner.decode()).flatten()[places]
        values = store_scale(missing[None], "float16") if len(missing) else missing.half()[None]
        assert isinstance(values, Tensor)
        rows = torch.searchsorted(places, torch.arange(n + 1, device=places.device) * k).to(torch.int32)
        return cls((n, k), torch.float32, inner, values[0], (places % k).to(dtype), rows)

    def places(self) -> Tensor:
        """Row and column of each value, [2, s] int64."""
        counts = self.rows.diff().long()
        row = torch.arange(self.shape[0], device=self.rows.device)
        return torch.stack([row.repeat_interleave(counts, output_size=len(self.values)), self.columns.long()])

    def decode(self) -> Tensor:
        row, column = self.places()
        return self.inner.decode().index_put((row, column), self.values.float(), accumulate=True)

    def _sparse(self, dtype: torch.dtype) -> Tensor:
        """S as a sparse tensor in float32, or in float64 for that dtype."""
        values = self.values.to(torch.promote_types(dtype, torch.float32))
        return torch.sparse_coo_tensor(self.places(), values, self.shape, is_coalesced=True, check_invariants=False)

    def before(self, x: Tensor) -> Tensor:
        return x

    def before_transposed(self, dx: Tensor) -> Tensor:
        return dx

    def beside(self, x: Tensor) -> Tensor:
        s = self._sparse(x.dtype)
        y: Tensor = torch.sparse.mm(s, x.to(s.dtype).T)  # type: ignore[no-untyped-call, unused-ignore]
        return y.T.to(x.dtype)

    def beside_transposed(self, dy: Tensor) -> Tensor:
        s = self._sparse(dy.dtype)
        dx: Tensor = torch.sparse.mm(s.T, dy.to(s.dtype).T)  # type: ignore[no-untyped-call, unused-ignore]
        return dx.T.to(dy.dtype)
