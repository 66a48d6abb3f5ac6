"""The decoders that are written in PTX, run instruction by instruction by a model of the few instructions they use.

Triton's interpreter cannot run assembly; so its text is read from the kernel module and executed here on 32-bit words,
on every pair of codes at every place of a word, and compared with the definition of the decoder.
Source: PTX ISA, "prmt", "lop3", "fma".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor

from kernels import decoding
from kernels.interpreter import interpreting
from kernels.op import interpreted

HALVES = [torch.float16, torch.bfloat16]
TRITON = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def assembly(function: str) -> list[str]:
    """The blocks of PTX in a function of the decoder, in order."""
    tree = ast.parse(Path(str(decoding.__file__)).read_text())
    body = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    texts = [n.value for n in ast.walk(body) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [text for text in texts if text.startswith("{")]


def run(text: str, inputs: Mapping[str, int]) -> dict[str, int]:
    """Registers after the block, every value a 32-bit word."""
    registers = dict(inputs)
    for line in text.strip("{}\n ").split(";"):
        words = line.replace(",", " ").split()
        if words and words[0] != ".reg":
            given = [registers[w] if w in registers else int(w, 0) for w in words[2:]]
            registers[words[1]] = execute(words[0], given) & 0xFFFFFFFF
    return registers


def execute(opcode: str, given: list[int]) -> int:
    if opcode in ("and.b32", "shr.u32", "mov.b32"):
        return {"and": given[0] & given[-1], "shr": given[0] >> given[-1], "mov": given[0]}[opcode[:3]]
    if opcode == "prmt.b32":
        both = given[0] | given[1] << 32
        picks = [(given[2] >> 4 * i) & 15 for i in range(4)]
        assert max(picks) < 8, "a set top bit would spread a sign"
        return sum((both >> 8 * pick & 0xFF) << 8 * i for i, pick in enumerate(picks))
    if opcode == "lop3.b32":  # the table's entry i is the result for bits a, b, c of i = 4 a + 2 b + c
        a, b, c, table = given
        bits = ((table >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1) << i for i in range(32))
        return sum(bits)
    kind = re.fullmatch(r"(sub|fma)\.rn\.(f16|bf16)x2", opcode)
    assert kind is not None, f"no model of {opcode}"
    dtype = torch.float16 if kind[2] == "f16" else torch.bfloat16
    values = [halves(word, dtype).double() for word in given]
    out = values[0] - values[1] if kind[1] == "sub" else values[0] * values[1] + values[2]
    low, high = out.to(dtype).view(torch.int16).tolist()
    return (low & 0xFFFF) | (high & 0xFFFF) << 16


def halves(word: int, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.array([word], np.uint32).view(np.int16).copy()).view(dtype)


def outputs(registers: Mapping[str, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """First and second codes' values of four bytes: registers 0 and 1 hold the first, 2 and 3 the second."""
    first, second = (torch.cat([halves(registers[f"${i + j}"], dtype) for j in (0, 1)]) for i in (0, 2))
    return first, second


def words() -> list[int]:
    """Every byte, at every place of a word."""
    return [sum(((value + 67 * place) % 256) << 8 * place for place in range(4)) for value in range(256)]


def codes_in(word: int) -> tuple[Tensor, Tensor]:
    packed = torch.tensor([word >> 8 * place & 0xFF for place in range(4)])
    return packed >> 4, packed & 15


def tables(number: int, n_levels: int, dtype: torch.dtype) -> Tensor:
    """Levels of both signs, of many sizes, and zero; rounded, since the interpreter does not round to bfloat16."""
    draw = torch.Generator().manual_seed(3)
    size = (number, n_levels)
    levels = torch.randn(size, generator=draw) * 2.0 ** torch.randint(-9, 9, size, generator=draw)
    levels[:, 5] = 0
    return levels.to(dtype).float()


def planes(levels: Tensor, rows: int, n: int, dtype: torch.dtype) -> list[list[int]]:
    """The eight words of each of n rows."""
    out = torch.full((8, n), -1, dtype=torch.int32)
    with interpreting():
        write = interpreted("tests.kernels.planes").write_planes
        write[(1,)](levels, out, n, levels.shape[1], TRITON[dtype], rows, 8)
    return [[word & 0xFFFFFFFF for word in row] for row in out.T.tolist()]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("n_levels", [16, 11])
@pytest.mark.parametrize("rows", [0, 2])
def test_a_table_in_registers_gives_the_level_of_every_code(dtype: torch.dtype, n_levels: int, rows: int) -> None:
    n = 3
    levels = tables(-(-n // rows) if rows else 1, n_levels, dtype)
    (text,) = assembly("_looked_up")
    for row, held in enumerate(planes(levels, rows, n, dtype)):
        want = torch.zeros(16, dtype=dtype)
        want[:n_levels] = levels[row // rows if rows else 0].to(dtype)
        given = {f"${5 + 4 * i}": word for i, word in enumerate(held)}
        for word in words()[row::3]:
            got = outputs(run(text, {"$4": word, **given}), dtype)
            assert all(torch.equal(g, want[c]) for g, c in zip(got, codes_in(word), strict=True))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_codes_of_a_uniform_grid_are_centred_exactly(dtype: torch.dtype) -> None:
    text = assembly("_centred")[HALVES.index(dtype)]
    for word in words():
        got = outputs(run(text, {"$4": word}), dtype)
        assert all(torch.equal(g, (c - 8).to(dtype)) for g, c in zip(got, codes_in(word), strict=True))


def test_the_model_reads_three_inputs_and_picks_bytes() -> None:
    assert execute("prmt.b32", [0x33221100, 0x77665544, 0x0175]) == 0x00117755
    assert execute("lop3.b32", [0b1100, 0b1010, 0b0001, 0xEA]) == 0b1001  # a & b | c
