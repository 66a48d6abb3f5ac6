"""A kernel that writes down how the decoder lays tables of 16 levels out in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.decoding import row_planes


# levels [tables, n_levels] -> out [8, n] int32: for each row four words of high bytes, four of low bytes
@triton.jit
def write_planes(levels_ptr, out_ptr, n, n_levels, DTYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.arange(0, BLOCK_N)
    planes = row_planes(levels_ptr, row, n, n_levels, DTYPE, ROWS, True)
    for i in tl.static_range(8):
        word = tl.full((BLOCK_N, 1), 0, tl.int32) + planes[i]
        tl.store(out_ptr + i * n + row[:, None], word, mask=row[:, None] < n)
