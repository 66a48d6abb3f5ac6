"""Exchange with bitsandbytes: the state dict of its `Linear4bit` weights (NF4 and FP4, plain and double-quantized).

bitsandbytes stores the codes flat, [(n * k + 1) // 2, 1] uint8 with the first value in the high nibble, and cuts the
flattened weight into blocks of one absolute maximum each. Names under a weight called `prefix`:
  prefix                                  codes
  prefix.absmax                           maxima, float32, or uint8 codes of them when double-quantized
  prefix.quant_map                        the 16 levels
  prefix.nested_absmax, .nested_quant_map second-level maxima and the 256 levels
  prefix.quant_state.bitsandbytes__nf4    JSON as uint8: quant_type, blocksize, dtype, shape, and nested_blocksize,
                                          nested_dtype, nested_offset when double-quantized
Nothing of the library is imported. Codes and scales are carried over as they are, so both sides decode to equal bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quant.core import QuantizedTensor, UnsupportedError
from quant.formats import Codebook, FixedCodebook, Reshaped
from quant.grouping import group_shape
from quant.methods.fp4 import BNB_FP4_LEVELS
from quant.methods.nf4 import NF4_LEVELS

__all__ = ["from_bnb_state_dict", "to_bnb_state_dict"]

LEVELS = {"nf4": NF4_LEVELS, "fp4": BNB_FP4_LEVELS}
ZERO_CODE = {"nf4": 7, "fp4": 0}  # fills the last low nibble of an odd number of values
STATE = "quant_state.bitsandbytes__"
REMEDY = "quantize with NF(scale='float32' or DynamicMap()) or FP4('bnb'), inside Flat when group does not divide k"


def to_bnb_state_dict(weight: QuantizedTensor, prefix: str = "weight") -> dict[str, Tensor]:
    """`weight` as bitsandbytes would save it. Raises UnsupportedError when bitsandbytes has no such format."""
    flat = weight.inner if isinstance(weight, Reshaped) else weight
    if not isinstance(flat, Codebook) or flat.bits != 4 or not isinstance(flat.group, int) or flat.offset is not None:
        raise UnsupportedError(f"bitsandbytes has no format for {weight.format!r} of these settings; {REMEDY}")
    kind = next((name for name, table in LEVELS.items() if torch.equal(flat.levels.cpu(), torch.tensor([table]))), None)
    if kind is None:
        raise UnsupportedError(f"bitsandbytes knows the tables of nf4 and fp4 only; {REMEDY}")
    n, k = flat.shape
    if n > 1 and (k % flat.group or k % 2):
        raise UnsupportedError(f"blocks of {flat.group} end with each row of {k}, bitsandbytes' do not; {REMEDY}")
    codes = flat.codes.reshape(-1, 1).clone()
    if weight.numel % 2:
        codes[-1] |= ZERO_CODE[kind]
    meta: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": flat.group,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "shape": list(weight.shape),
    }
    out = {prefix: codes, f"{prefix}.quant_map": flat.levels[0].float()}
    if isinstance(flat.scale, Tensor):
        out[f"{prefix}.absmax"] = flat.scale.float().flatten()
    else:
        nested = flat.scale.inner if isinstance(flat.scale, Reshaped) else flat.scale
        if not (
            isinstance(nested, Codebook)
            and nested.bits == 8
            and nested.levels.shape[0] == 1
            and nested.offset is not None
            and isinstance(nested.group, int)
            and isinstance(nested.scale, Tensor)
        ):
            raise UnsupportedError(f"bitsandbytes has no such double quantization; {REMEDY}")
        out[f"{prefix}.absmax"] = nested.codes.flatten()
        out[f"{prefix}.nested_absmax"] = nested.scale.float().flatten()
        out[f"{prefix}.nested_quant_map"] = nested.levels[0].float()
        meta |= {"nested_blocksize": nested.group, "nested_dtype": "float32", "nested_offset": float(nested.offset)}
    out[f"{prefix}.{STATE}{kind}"] = torch.tensor(list(json.dumps(meta).encode()), dtype=torch.uint8)
    return out


def from_bnb_state_dict(tensors: Mapping[str, Tensor], prefix: str = "weight") -> QuantizedTensor:
    """The weight that bitsandbytes saved under `prefix`; other entries of `tensors` are ignored.

    The result is one row [1, n * k] seen as [n, k], or [n, k] itself where blocks end with the rows. Raises ValueError
    when an entry is missing or does not fit the others.
    """
    state = [f"{prefix}.{STATE}{kind}" for kind in LEVELS if f"{prefix}.{STATE}{kind}" in tensors]
    if len(state) != 1:
        raise ValueError(f"expected one entry {prefix}.{STATE}nf4 or ...fp4, found {state or 'none'}")
    meta = json.loads(bytes(tensors[state[0]].tolist()))

    def entry(name: str) -> Tensor:
        key = f"{prefix}.{name}" if name else prefix
        if key not in tensors:
            raise ValueError(f"{state[0]} needs the tensor {key!r}, which is missing")
        return tensors[key]

    def setting(name: str) -> Any:
        if name not in meta:
            raise ValueError(f"{state[0]} has no {name!r}; it names {', '.join(sorted(meta))}")
        return meta[name]

    n, k = setting("shape")
    group = int(setting("blocksize"))
    codes = entry("").reshape(-1)
    if codes.dtype != torch.uint8 or codes.numel() != (n * k + 1) // 2:
        raise ValueError(f"{prefix!r} must hold {(n * k + 1) // 2} bytes, got {codes.dtype} {list(codes.shape)}")
    if n * k % 2:
        codes = torch.cat([codes[:-1], codes[-1:] & 0xF0])
    shape = (n, k) if k % group == 0 and k % 2 == 0 else (1, n * k)
    dtype = getattr(torch, setting("dtype"))
    blocks = group_shape(shape, group)
    absmax = entry("absmax")
    if absmax.numel() != blocks[0] * blocks[1]:
        raise ValueError(f"{prefix}.absmax must hold {blocks[0] * blocks[1]} values, got {absmax.numel()}")
    scale: Tensor | QuantizedTensor = absmax.reshape(blocks)
    if "nested_blocksize" in meta:
        scale = Reshaped(
            blocks,
            torch.float32,
            FixedCodebook(
                shape=(1, absmax.numel()),
                dtype=torch.float32,
                codes=absmax.reshape(1, -1),
                levels=entry("nested_quant_map").reshape(1, -1),
                scale=entry("nested_absmax").reshape(1, -1),
                offset=torch.tensor([setting("nested_offset")], device=codes.device),
                bits=8,
                group=int(setting("nested_blocksize")),
                rows=0,
            ),
        )
    levels = entry("quant_map").reshape(1, -1)
    packed = codes.reshape(shape[0], -1)
    weight = FixedCodebook(shape, dtype, packed, levels, scale, None, 4, group, 0)
    return weight if shape == (n, k) else Reshaped((n, k), dtype, weight)
