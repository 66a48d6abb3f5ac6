"""How a tile of a packed weight becomes numbers inside a kernel: codes, their values before the scale, and the scales.

    value = levels[i // rows, code]   from a table            value = code - 2**(bits - 1)   on a uniform grid
    values 2 j, 2 j + 1 = levels[code j]   from a table of pairs

Two ways of 4 bits are written in PTX for NVIDIA's 16-bit products (`PTX`), eight codes a 32-bit word; elsewhere the
same values come from Triton's own operations. A table of 16 half-precision levels, the weight's or its row's, lies in
eight registers, a plane of high and one of low bytes; PRMT picks four bytes at a time by the low three bits of each
code and then by its top bit; a table of pairs is two such tables. On a uniform grid the code is put into the mantissa
of 1024 (float16) or 128 (bfloat16) and that number is taken off again.
The functions here are Triton's; they are called from the kernels of other modules.
Sources: PTX ISA, `prmt`; Kim et al. 2022 (mantissa trick), arXiv 2211.10017, section 4.2.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["codes_of", "planes_of", "row_planes", "scales_at", "table_of", "units_of"]


@triton.jit
def codes_of(codes_ptr, row, start, n, row_bytes, BITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    # rows row[BLOCK_N], columns start .. start + BLOCK_K -> codes [BLOCK_N, BLOCK_K] int32, 0 outside the stored bytes
    base = codes_ptr + row.to(tl.int64)[:, None] * row_bytes
    if BITS == 8:
        at = start + tl.arange(0, BLOCK_K)[None, :]
        code = tl.load(base + at, mask=(row[:, None] < n) & (at < row_bytes), other=0).to(tl.int32)
    elif 8 % BITS == 0:
        at = start * BITS // 8 + tl.arange(0, BLOCK_K * BITS // 8)[None, :]
        packed = tl.load(base + at, mask=(row[:, None] < n) & (at < row_bytes), other=0).to(tl.int32)
        shift = 8 - BITS - BITS * tl.arange(0, 8 // BITS)
        code = tl.reshape((packed[:, :, None] >> shift[None, None, :]) & ((1 << BITS) - 1), (BLOCK_N, BLOCK_K))
    else:  # eight codes are BITS bytes, gathered into one word
        at = start // 8 * BITS + BITS * tl.arange(0, BLOCK_K // 8)[None, :]
        word = tl.full((BLOCK_N, BLOCK_K // 8), 0, tl.int32 if BITS == 3 else tl.int64)
        for i in tl.static_range(BITS):
            byte = tl.load(base + at + i, mask=(row[:, None] < n) & (at + i < row_bytes), other=0)
            word = word * 256 + byte.to(word.dtype)
        shift = BITS * (7 - tl.arange(0, 8))
        code = ((word[:, :, None] >> shift[None, None, :]) & ((1 << BITS) - 1)).to(tl.int32)
        code = tl.reshape(code, (BLOCK_N, BLOCK_K))
    return code


@triton.jit
def table_of(levels_ptr, n_levels, BITS: tl.constexpr, DTYPE: tl.constexpr, PAIRS: tl.constexpr = False):
    # the first table [2**BITS], or that of pairs [2 * 2**BITS], in DTYPE, 0 beyond its levels; one zero without levels
    if levels_ptr is None:
        table = tl.full((1,), 0.0, DTYPE)
    else:
        each: tl.constexpr = 2 if PAIRS else 1
        entry = tl.arange(0, each << BITS)
        table = tl.load(levels_ptr + entry, mask=entry < each * n_levels, other=0.0).to(DTYPE)
    return table


@triton.jit
def _level_bits(levels_ptr, i, n_levels, DTYPE: tl.constexpr, STEP: tl.constexpr):
    # the 16 bits of level i in DTYPE, as int32
    level = tl.load(levels_ptr + STEP * i, mask=i < n_levels, other=0.0).to(DTYPE)
    return level.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF


@triton.jit
def _four(levels_ptr, i, n_levels, DTYPE: tl.constexpr, STEP: tl.constexpr):
    # the high and the low bytes of levels i .. i + 3, a word each
    a = _level_bits(levels_ptr, i, n_levels, DTYPE, STEP)
    b = _level_bits(levels_ptr, i + 1, n_levels, DTYPE, STEP)
    c = _level_bits(levels_ptr, i + 2, n_levels, DTYPE, STEP)
    d = _level_bits(levels_ptr, i + 3, n_levels, DTYPE, STEP)
    low = (a & 255) | ((b & 255) << 8) | ((c & 255) << 16) | (d << 24)
    high = (a >> 8) | (b & 0xFF00) | ((c & 0xFF00) << 8) | ((d & 0xFF00) << 16)
    return high, low


@triton.jit
def planes_of(levels_ptr, n_levels, DTYPE: tl.constexpr, WANTED: tl.constexpr, STEP: tl.constexpr = 1):
    # a table of 16 levels, STEP apart, as eight words: four of high bytes, four of low bytes; zeros if not WANTED
    if WANTED and levels_ptr is not None:
        h0, l0 = _four(levels_ptr, 0, n_levels, DTYPE, STEP)
        h1, l1 = _four(levels_ptr, 4, n_levels, DTYPE, STEP)
        h2, l2 = _four(levels_ptr, 8, n_levels, DTYPE, STEP)
        h3, l3 = _four(levels_ptr, 12, n_levels, DTYPE, STEP)
    else:
        h0, h1, h2, h3, l0, l1, l2, l3 = 0, 0, 0, 0, 0, 0, 0, 0
    return h0, h1, h2, h3, l0, l1, l2, l3


@triton.jit
def row_planes(
    levels_ptr,
    row,
    n,
    n_levels,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    WANTED: tl.constexpr,
    PAIRS: tl.constexpr = False,
):
    # `planes_of` the tables of rows row[BLOCK_N]: words [BLOCK_N, 1] where ROWS rows share a table, else scalars; of
    # PAIRS those of the first and of the second values
    if WANTED and PAIRS:
        planes = (
            planes_of(levels_ptr, n_levels, DTYPE, WANTED, 2),
            planes_of(levels_ptr + 1, n_levels, DTYPE, WANTED, 2),
        )
    elif WANTED and levels_ptr is not None and ROWS != 0:
        at = (tl.minimum(row, n - 1) // ROWS).to(tl.int64)[:, None] * n_levels
        planes = planes_of(levels_ptr + at, tl.full(at.shape, 0, tl.int32) + n_levels, DTYPE, WANTED)
    else:
        planes = planes_of(levels_ptr, n_levels, DTYPE, WANTED)
    return planes


@triton.jit
def _looked_up(packed, planes):
    # bytes of two codes each -> levels of their first and of their second codes, 16 bits of what the planes hold
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 s, t, a, b, h, l;
        and.b32 s, $4, 0x77777777;
        shr.u32 t, $4, 1;
        lop3.b32 t, t, 0x44444444, 0x32103210, 0xEA;
        prmt.b32 a, $5, $9, s;
        prmt.b32 b, $13, $17, s;
        prmt.b32 h, a, b, t;
        prmt.b32 a, $21, $25, s;
        prmt.b32 b, $29, $33, s;
        prmt.b32 l, a, b, t;
        prmt.b32 $0, l, h, 0x7351;
        prmt.b32 $2, l, h, 0x6240;
        shr.u32 s, s, 16;
        shr.u32 t, t, 16;
        prmt.b32 a, $5, $9, s;
        prmt.b32 b, $13, $17, s;
        prmt.b32 h, a, b, t;
        prmt.b32 a, $21, $25, s;
        prmt.b32 b, $29, $33, s;
        prmt.b32 l, a, b, t;
        prmt.b32 $1, l, h, 0x7351;
        prmt.b32 $3, l, h, 0x6240;
        }""",
        "=&r,=&r,=&r,=&r,r" + 32 * ",r",
        [packed, planes[0], planes[1], planes[2], planes[3], planes[4], planes[5], planes[6], planes[7]],
        dtype=(tl.int16, tl.int16),
        is_pure=True,
        pack=4,
    )


@triton.jit
def _centred(packed, DTYPE: tl.constexpr):
    # bytes of two codes each -> code - 8 of their first and of their second codes, 16 bits of DTYPE
    if DTYPE == tl.float16:
        first, second = tl.inline_asm_elementwise(
            """{
            .reg .b32 a, b;
            prmt.b32 a, $4, 0, 0x4140;
            prmt.b32 b, $4, 0, 0x4342;
            lop3.b32 $2, a, 0x000f000f, 0x64006400, 0xEA;
            lop3.b32 $3, b, 0x000f000f, 0x64006400, 0xEA;
            lop3.b32 $0, a, 0x00f000f0, 0x64006400, 0xEA;
            lop3.b32 $1, b, 0x00f000f0, 0x64006400, 0xEA;
            mov.b32 a, 0x64086408;
            sub.rn.f16x2 $2, $2, a;
            sub.rn.f16x2 $3, $3, a;
            mov.b32 a, 0x2c002c00;
            mov.b32 b, 0xd480d480;
            fma.rn.f16x2 $0, $0, a, b;
            fma.rn.f16x2 $1, $1, a, b;
            }""",
            "=&r,=&r,=&r,=&r,r",
            [packed],
            dtype=(tl.int16, tl.int16),
            is_pure=True,
            pack=4,
        )
    else:
        first, second = tl.inline_asm_elementwise(
            """{
            .reg .b32 a, b, c, d, one, less;
            prmt.b32 a, $4, 0, 0x4140;
            prmt.b32 b, $4, 0, 0x4342;
            shr.u32 c, a, 4;
            shr.u32 d, b, 4;
            lop3.b32 $0, c, 0x000f000f, 0x43004300, 0xEA;
            lop3.b32 $1, d, 0x000f000f, 0x43004300, 0xEA;
            lop3.b32 $2, a, 0x000f000f, 0x43004300, 0xEA;
            lop3.b32 $3, b, 0x000f000f, 0x43004300, 0xEA;
            mov.b32 one, 0x3f803f80;
            mov.b32 less, 0xc308c308;
            fma.rn.bf16x2 $0, $0, one, less;
            fma.rn.bf16x2 $1, $1, one, less;
            fma.rn.bf16x2 $2, $2, one, less;
            fma.rn.bf16x2 $3, $3, one, less;
            }""",
            "=&r,=&r,=&r,=&r,r",
            [packed],
            dtype=(tl.int16, tl.int16),
            is_pure=True,
            pack=4,
        )
    return first, second


@triton.jit
def units_of(
    codes_ptr,
    levels_ptr,
    table,
    planes,
    row,
    start,
    n,
    row_bytes,
    n_levels,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    PTX: tl.constexpr,
    CENTRE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PAIRS: tl.constexpr = False,
):
    # the weight before its scale and zero, [BLOCK_N, BLOCK_K] in DTYPE; finite, and of no meaning, outside [n, k];
    # on a uniform grid code - CENTRE, which PTX takes to be 8; of PAIRS a code is two columns
    if PTX:
        each: tl.constexpr = 4 if PAIRS else 2  # weights of a byte
        at = start // each + tl.arange(0, BLOCK_K // each)[None, :]
        base = codes_ptr + row.to(tl.int64)[:, None] * row_bytes
        packed = tl.load(base + at, mask=(row[:, None] < n) & (at < row_bytes), other=0)
        if PAIRS:
            a, c = _looked_up(packed, planes[0])
            b, d = _looked_up(packed, planes[1])
            both = tl.join(tl.join(a, c), tl.join(b, d)).to(DTYPE, bitcast=True)
        else:
            if levels_ptr is None:
                first, second = _centred(packed, DTYPE)
            else:
                first, second = _looked_up(packed, planes)
            both = tl.join(first.to(DTYPE, bitcast=True), second.to(DTYPE, bitcast=True))
        w = tl.reshape(both, (BLOCK_N, BLOCK_K))
    elif PAIRS:
        code = codes_of(codes_ptr, row, start // 2, n, row_bytes, BITS, BLOCK_N, BLOCK_K // 2)
        at = 2 * code[:, :, None] + tl.arange(0, 2)[None, None, :]
        w = tl.reshape(tl.gather(table, tl.reshape(at, (BLOCK_N * BLOCK_K,)), 0), (BLOCK_N, BLOCK_K))
    else:
        code = codes_of(codes_ptr, row, start, n, row_bytes, BITS, BLOCK_N, BLOCK_K)
        if levels_ptr is None:  # 2**23 + code is a float32 whose last bits are the code
            w = ((code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + CENTRE)).to(DTYPE)
        elif ROWS == 0:
            w = tl.reshape(tl.gather(table, tl.reshape(code, (BLOCK_N * BLOCK_K,)), 0), (BLOCK_N, BLOCK_K))
        else:
            at = (row // ROWS).to(tl.int64)[:, None] * n_levels + code
            w = tl.load(levels_ptr + at, mask=(row[:, None] < n) & (code < n_levels), other=0.0).to(DTYPE)
    return w


@triton.jit
def scales_at(scale_ptr, nest_levels_ptr, nest_scale_ptr, nest_offset_ptr, at, mask, NEST: tl.constexpr):
    # scales float32 at offsets `at` int64, 0 outside `mask`
    if NEST == 0:
        value = tl.load(scale_ptr + at, mask=mask, other=0.0).to(tl.float32)
    else:
        code = tl.load(scale_ptr + at, mask=mask, other=0).to(tl.int32)
        value = tl.load(nest_levels_ptr + code).to(tl.float32)
        value *= tl.load(nest_scale_ptr + at // NEST, mask=mask, other=0.0).to(tl.float32)
        if nest_offset_ptr is not None:
            value += tl.load(nest_offset_ptr).to(tl.float32)
    return value
