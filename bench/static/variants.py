"""Arguments that an operation also takes, made from its typical ones, so that all paths of its kernels are compiled.

A product or decoder of packed codes: codes of 3 and of 8 bits, zeros, nested scales, a table of levels to a row.
A quantizer: codes of 3 and of 8 bits, one group a row, one group the whole tensor, both kinds of zeros. A product with
2:4 weights: kept weights of 4 bits. Other sparse weights: see `_kept` and `_in_blocks`.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from kernels.nested import NestedScale
from kernels.op import Op
from kernels.packing import packed_bytes

__all__ = ["variants"]

WIDTHS = (3, 8)  # bits: one that no byte is a multiple of, and the widest
GROUP = 64
NEST = 256  # scales that share an entry


def variants(op: Op, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Names and arguments; none for an operation of one form."""
    if op.name == "two_of_four_matmul":
        n, kept = arguments["values"].shape
        codes = torch.zeros(n, packed_bytes(kept, 4), dtype=torch.uint8)
        steps = torch.ones(n, kept // GROUP, dtype=torch.float16)
        yield "w4", {**arguments, "values": codes, "scale": steps, "group": GROUP}
    if op.name.startswith(("n_of_m_", "bitmask_")) and "bits" in arguments:
        yield from _kept(arguments)
    if op.name.startswith("blocks_"):
        yield from _in_blocks(arguments)
    if "bits" not in arguments or not op.name.startswith(("affine_", "codebook_", "pairs_")):
        return
    for bits in WIDTHS:
        yield f"w{bits}", _of_width(arguments, bits)
    if "weight" in arguments:
        yield "channel", {**arguments, "group": "channel"}
        yield "tensor", {**arguments, "group": "tensor"}
        for zero in ("integer", "float") if "zero" in arguments else ():
            yield zero, {**arguments, "zero": zero}
    scale = arguments.get("scale")
    if "zero" in arguments and isinstance(scale, Tensor):
        yield "zero", {**arguments, "zero": torch.ones_like(scale)}
    if isinstance(scale, Tensor) and NestedScale in typing.get_args(typing.get_type_hints(op.reference)["scale"]):
        yield "nested", {**arguments, "scale": _nested(scale)}
    if "rows" in arguments:
        levels = arguments["levels"]
        yield "rows", {**arguments, "rows": 1, "levels": levels.expand(len(arguments["codes"]), -1).contiguous()}


def _of_width(arguments: Mapping[str, Any], bits: int) -> Mapping[str, Any]:
    """The same with codes, if there are any, and levels for `bits` bits; their values do not matter here."""
    changed = {**arguments, "bits": bits}
    if "codes" in arguments:
        n, row = arguments["codes"].shape
        k = row * 8 // arguments["bits"]
        changed["codes"] = torch.zeros(n, packed_bytes(k, bits), dtype=torch.uint8)
    if "levels" in arguments and arguments["levels"].shape[-1] == 2:  # a pair each
        changed["levels"] = torch.zeros(1 << bits, 2, dtype=arguments["levels"].dtype)
    elif "levels" in arguments:
        levels = torch.linspace(-1, 1, 1 << bits, dtype=arguments["levels"].dtype)
        changed["levels"] = levels.expand(*arguments["levels"].shape[:-1], -1).contiguous()
    return changed


def _nested(scale: Tensor) -> NestedScale:
    codes = torch.zeros(scale.shape, dtype=torch.uint8)
    return NestedScale(codes, torch.zeros(256), torch.zeros(-(-codes.numel() // NEST)), torch.zeros(1), NEST)


def _kept(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Kept weights on grids and of tables: 4 bits, 3 bits under zeros, nested scales, a table to a row, 2:4 places."""
    values = "codes" if "codes" in arguments else "values"
    rows = len(arguments[values])
    kept = arguments["kept"] if "kept" in arguments else arguments["indices"].shape[1] * 8 // 3

    def coded(bits: int, **changes: Any) -> dict[str, Any]:
        codes = torch.zeros(rows, packed_bytes(kept, bits), dtype=torch.uint8)
        steps = torch.ones(rows, -(-kept // GROUP), dtype=torch.float16)
        return {**arguments, values: codes, "levels": None, "scale": steps, "bits": bits, "group": GROUP, **changes}

    steps = torch.ones(rows, -(-kept // GROUP), dtype=torch.float16)
    yield "w4", coded(4)
    yield "w3", coded(3, zero=torch.ones_like(steps))
    yield "nested", coded(4, levels=torch.zeros(1, 16), scale=_nested(steps))
    if "of" in arguments:
        pairs = {"of": 4, "indices": torch.zeros(rows, kept // 4, dtype=torch.uint8)}
        yield "of4", {**arguments, **pairs}
        yield "of4-table", coded(4, levels=torch.zeros(1, 16), **pairs)
        yield "rows", coded(4, levels=torch.zeros(rows, 16), rows=1)


def _in_blocks(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Blocks of codes: 4 bits in blocks of two sizes, 3 bits under zeros, nested scales, a table to a block."""
    kept, size = arguments["values"].shape

    def coded(bits: int, **changes: Any) -> dict[str, Any]:
        codes = torch.zeros(kept, packed_bytes(size, bits), dtype=torch.uint8)
        return {**arguments, "values": codes, "scale": steps, "bits": bits, "group": GROUP, **changes}

    steps = torch.ones(kept, size // GROUP, dtype=torch.float16)
    yield "w4", coded(4)
    few = {"values": torch.zeros(4 * kept, size // 8, dtype=torch.uint8), "scale": steps.view(-1, 1)[: 4 * kept]}
    mask = torch.full((2 * arguments["mask"].shape[0], 2 * arguments["mask"].shape[1]), 0x5A, dtype=torch.uint8)
    yield "w4-8x8", coded(4, **few, block=(8, 8), mask=mask, starts=torch.zeros(mask.shape, dtype=torch.int32))
    yield "w3", coded(3, zero=torch.ones_like(steps))
    yield "nested", coded(4, levels=torch.zeros(1, 16), scale=_nested(steps))
    yield "rows", coded(4, levels=torch.zeros(kept, 16), rows=1)
