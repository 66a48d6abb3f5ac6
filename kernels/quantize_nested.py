"""The scales of a weight, quantized themselves: 8-bit codes of a table around their mean, one maximum a block.

    rest = scale - offset     largest = max |rest| of the block     code = nearest level to rest / largest

Blocks run over the flattened scales. A code whose level would decode below zero, where no scale lies, is raised by
one. The offset, the mean of all scales, is given: the last bit of a sum depends on its order, and so on the device.
Source: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_dtype
from kernels.op import EXACT, Op
from kernels.quantize_examples import nested_examples, nested_sized
from kernels.quantize_reference import nested_reference
from kernels.quantize_tile import inverse_of, rank_of
from kernels.tuning import Kernel, Launch

__all__ = ["OPERATIONS", "nested_quantize"]


def nested_quantize(scale: Tensor, offset: Tensor, levels: Tensor, *, block: int) -> tuple[Tensor, Tensor]:
    """Codes uint8 of the shape of `scale` float32, and maxima float32 [ceil(numel / block)].

    `offset` holds one float32, `levels` [L], L <= 256, ascending; `block` is at most 4096. Raises ValueError for
    settings that do not fit, TypeError for a wrong dtype.
    """
    if scale.dtype != torch.float32 or offset.dtype != torch.float32:
        raise TypeError(f"scale and offset must be float32, got {scale.dtype} and {offset.dtype}")
    check_dtype("levels", levels.dtype)
    if levels.ndim != 1 or not 0 < len(levels) <= 256 or offset.numel() != 1:
        raise ValueError(f"levels must be [1 .. 256] and offset [1], got {list(levels.shape)}, {list(offset.shape)}")
    if not 0 < block <= 4096 or not 0 < scale.numel() < 2**31:
        raise ValueError(f"block must be 1..4096 and scales 1 .. 2**31 - 1, got {block} and {scale.numel()}")
    blocks = -(-scale.numel() // block)
    codes = torch.empty(scale.shape, dtype=torch.uint8, device=scale.device)
    largest = torch.empty(blocks, dtype=torch.float32, device=scale.device)
    width = triton.next_power_of_2(block)
    down = max(1, (1 << 16 if NESTED.interpreted else 2048) // width)
    arguments = {
        "scale_ptr": scale.contiguous(),
        "offset_ptr": offset,
        "levels_ptr": levels.contiguous(),
        "codes_ptr": codes,
        "largest_ptr": largest,
        **{"count": scale.numel(), "blocks": blocks, "n_levels": len(levels)},
        **{"BLOCK": block, "WIDTH": width, "DOWN": down},
    }
    grid = (triton.cdiv(blocks, down),)
    Launch(NESTED, lambda meta: grid, arguments).run()
    return codes, largest


# scale [count] float32, offset [1], levels [n_levels] -> codes [count] uint8, largest [blocks] float32
@triton.jit
def _nested(
    scale_ptr,
    offset_ptr,
    levels_ptr,
    codes_ptr,
    largest_ptr,
    count,
    blocks,
    n_levels,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    DOWN: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64) * DOWN + tl.arange(0, DOWN)
    lane = tl.arange(0, WIDTH)[None, :]
    at = block[:, None] * BLOCK + lane
    inside = (lane < BLOCK) & (at < count)
    offset = tl.load(offset_ptr)
    rest = tl.where(inside, tl.load(scale_ptr + at, mask=inside, other=0.0) - offset, 0.0)
    largest = tl.max(tl.abs(rest), axis=1)
    code = rank_of(rest * inverse_of(largest)[:, None], levels_ptr, n_levels, 8)
    entry = tl.arange(0, 256)
    table = tl.load(levels_ptr + entry, mask=entry < n_levels, other=0.0).to(tl.float32)
    level = tl.reshape(tl.gather(table, tl.reshape(code, (DOWN * WIDTH,)), 0), (DOWN, WIDTH))
    code += (level * largest[:, None] + offset < 0).to(tl.int32)
    tl.store(codes_ptr + at, code.to(tl.uint8), mask=inside)
    tl.store(largest_ptr + block, largest, mask=block < blocks)


NESTED = Kernel(
    _nested,
    configs=(triton.Config({"enable_fp_fusion": False}, num_warps=4),),
    slow=triton.Config({}),
    key=("count", "BLOCK"),
)
OPERATIONS = (
    Op(
        name="nested_quantize",
        formula="codes, largest = nearest((s - mean) / max|s - mean|), max|s - mean|",
        source="Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3",
        reference=nested_reference,
        triton=nested_quantize,
        examples=nested_examples,
        sized=nested_sized,
        tolerance=EXACT,
    ),
)
