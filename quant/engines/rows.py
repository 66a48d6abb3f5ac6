"""A flat weight seen by rows, where its blocks do not cross them, so that the row engines take it too."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor

from quant.core import QuantizedTensor
from quant.formats import Affine, Codebook, Reshaped
from quant.grouping import decode_scale

__all__ = ["as_rows"]


def as_rows(weight: QuantizedTensor) -> QuantizedTensor:
    """`weight`, or, for one row [1, n * k] of whole blocks seen as [n, k], the same weight stored by rows.

    Nested scales and zeros come out decoded: the result is for computing with, not for storing.
    """
    if not isinstance(weight, Reshaped):
        return weight
    inner, (n, k) = weight.inner, weight.shape
    if not isinstance(inner, Affine | Codebook) or inner.shape != (1, n * k) or k * inner.bits % 8:
        return weight
    side = {"scale": inner.scale} | ({"zero": inner.zero} if isinstance(inner, Affine) else {})
    changes: dict[str, Tensor | None] = {"codes": inner.codes.view(n, -1)}
    if isinstance(inner.group, int) and k % inner.group == 0:
        for name, value in side.items():
            changes[name] = None if value is None else decode_scale(value).reshape(n, -1)
        return dataclasses.replace(inner, shape=(n, k), **cast("dict[str, Any]", changes))
    if any(isinstance(v, torch.Tensor | QuantizedTensor) for v in side.values()):
        return weight
    return dataclasses.replace(inner, shape=(n, k), **cast("dict[str, Any]", changes))
