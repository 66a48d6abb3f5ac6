"""Stored weights as the kernels take them: codes with their levels, scales and zeros; floating values as they are.

Scales that are quantized in 8 bits under a table, or stored as powers of two in one byte, are read in that form; other
nested scales are decoded once and kept.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from quant.core import QuantizedTensor
from quant.engines.rows import as_rows
from quant.formats import E8M0, Affine, Codebook, Dense, Reshaped, Vectors
from quant.grouping import decode_scale

__all__ = ["DTYPES", "coded", "in_one_row", "kept_values", "pairs", "plain"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ONE = 1 << 30  # scales that share the factor 1 of powers of two


def coded(weight: QuantizedTensor) -> tuple[dict[str, Any], int]:
    """A weight of codes by rows, affine or codebook, as arguments; and the bytes that were derived from the stored."""
    rows, stored = as_rows(weight), weight.inner if isinstance(weight, Reshaped) else weight
    assert isinstance(rows, Affine | Codebook)
    assert isinstance(stored, Affine | Codebook)
    scale, size = _side(stored.scale, rows.scale)
    given: dict[str, Any] = {"values": rows.codes, "levels": None, "scale": scale, "zero": None}
    given |= {"bits": rows.bits, "group": rows.group, "rows": 0}
    if isinstance(rows, Codebook):
        return given | {"levels": rows.levels, "rows": rows.rows}, size
    zero = None if rows.zero is None else decode_scale(rows.zero)
    size += 0 if zero is None or zero is rows.zero else zero.nbytes
    return given | {"zero": zero}, size


def pairs(weight: Vectors) -> tuple[dict[str, Any], int]:
    """A weight of which two columns share a code as arguments, and the bytes that were derived from the stored."""
    scale, size = _side(weight.scale, weight.scale)
    given = {"values": weight.codes, "levels": weight.levels, "scale": scale}
    return given | {"bits": weight.vector_bits, "group": weight.group}, size


def kept_values(values: QuantizedTensor) -> tuple[dict[str, Any], int]:
    """The kept values of a sparse weight as arguments, and the bytes that were derived from the stored ones."""
    if isinstance(values, Dense) and values.values.dtype in DTYPES:
        return plain(values.values), 0
    rows = as_rows(values)
    if isinstance(rows, Affine) or (isinstance(rows, Codebook) and rows.offset is None):
        return coded(values)
    decoded = values.decode()
    return plain(decoded), decoded.nbytes


def plain(values: Tensor) -> dict[str, Any]:
    """Floating values as arguments."""
    return {"values": values, "levels": None, "scale": None, "zero": None, "bits": 0, "group": "tensor", "rows": 0}


def in_one_row(given: dict[str, Any], values: QuantizedTensor) -> tuple[dict[str, Any], int]:
    """`given` of `values` [n, k] as arguments of the same values in one row; what that cannot be is decoded."""
    n, k = values.shape
    if given["bits"] == 0:
        return given | {"values": given["values"].reshape(1, -1)}, 0
    group = given["group"] if given["group"] == "tensor" else k if given["group"] == "channel" else given["group"]
    group = group if group == "tensor" else min(int(group), k)
    whole = k * given["bits"] % 8 == 0 and (group == "tensor" or k % group == 0)
    if n > 1 and (not whole or (given["levels"] is not None and len(given["levels"]) > 1)):
        decoded = values.decode().view(1, -1)
        return plain(decoded), decoded.nbytes
    flat = {name: _flat(given[name]) for name in ("scale", "zero")}
    return given | flat | {"values": given["values"].reshape(1, -1), "group": group}, 0


def _flat(side: Any) -> Any:
    """Scales or zeros [n, groups], however they are stored, in one row."""
    if side is None or isinstance(side, Tensor):
        return None if side is None else side.reshape(1, -1)
    return dataclasses.replace(side, codes=side.codes.reshape(1, -1))


def _side(stored: Any, by_rows: Any) -> tuple[Any, int]:
    """Scales as a kernel takes them, and the bytes that were derived from the stored ones for it."""
    if stored is None or isinstance(stored, Tensor):
        return by_rows, 0
    from kernels.nested import NestedScale

    flat = stored.inner if isinstance(stored, Reshaped) else stored
    if isinstance(flat, Codebook) and tuple(flat.levels.shape) == (1, 256) and isinstance(flat.scale, Tensor):
        columns = flat.shape[1]
        group = {"channel": columns, "tensor": flat.numel}.get(str(flat.group), flat.group)
        if flat.shape[0] == 1 or columns % int(group) == 0 or flat.group == "tensor":
            codes = flat.codes.view(tuple(by_rows.shape))
            return NestedScale(codes, flat.levels, flat.scale, flat.offset, int(group)), 0
    if isinstance(flat, E8M0) and flat.numel <= ONE:
        powers, one = _powers(flat.codes.device)
        return NestedScale(flat.codes.view(tuple(by_rows.shape)), powers, one, None, ONE), 0
    scale = decode_scale(by_rows)
    return scale, scale.nbytes


@lru_cache
def _powers(device: torch.device) -> tuple[Tensor, Tensor]:
    """The 256 values of a byte of E8M0, of which the last stands for no number and is not stored; and one."""
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    codes[-1] = 0
    return E8M0((1, 256), torch.float32, codes[None]).decode(), torch.ones(1, device=device)
