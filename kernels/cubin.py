"""NVIDIA's compiled kernels: their machine code as text, and their registers, by the tools in Triton's wheel.

Starting the disassembler is most of its time, so it takes the code of many kernels as one block. What it prints is kept
beside Triton's cache, by the hash of the kernel. Sources: System V ABI, "ELF-64"; CUDA Binary Utilities.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import triton

__all__ = ["code_of", "disassembled", "registers"]

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ADDRESS = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/")


def disassembled(architecture: str, cubins: Sequence[bytes]) -> list[str]:
    """The listing of each cubin, an instruction a line with its address; `architecture` as in `SM90a`."""
    folder = Path(triton.knobs.cache.dir) / "listings"
    files = [folder / f"{hashlib.sha256(cubin).hexdigest()}.txt" for cubin in cubins]
    missing = {file: code_of(cubin) for file, cubin in zip(files, cubins, strict=True) if not file.exists()}
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        text = _output(b"".join(missing.values()), "nvdisasm", "--no-dataflow", "--binary", architecture)
        for file, part in zip(missing, _parts(text, [len(code) for code in missing.values()]), strict=True):
            written = file.with_suffix(f".{os.getpid()}")
            written.write_text(part)
            written.replace(file)
    return [file.read_text() for file in files]


def registers(cubin: bytes) -> int:
    """Registers a thread of the kernel."""
    usage = _output(cubin, "cuobjdump", "-res-usage")
    found = re.search(r"REG:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump reports no registers: {usage!r}")
    return int(found[1])


def code_of(cubin: bytes) -> bytes:
    """The machine code in an ELF file: its sections whose names begin with `.text`."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names_at = struct.unpack_from("<3H", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + size * i) for i in range(count)]
    names = sections[names_at][4]
    code = [cubin[s[4] : s[4] + s[5]] for s in sections if cubin.startswith(b".text", names + s[0])]
    if not code:
        raise ValueError("the cubin has no section .text")
    return b"".join(code)


def _parts(text: str, sizes: Sequence[int]) -> list[str]:
    """The lines of a listing, parted where the block of code was put together from pieces of `sizes` bytes."""
    parts: list[list[str]] = [[] for _ in sizes]
    piece, end = 0, sizes[0]
    for line in text.splitlines():
        if found := ADDRESS.match(line):
            while int(found[1], 16) >= end:
                piece += 1
                end += sizes[piece]
            parts[piece].append(line)
    return ["\n".join(lines) + "\n" for lines in parts]


def _output(content: bytes, tool: str, *options: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(content)
        return subprocess.run([str(BIN / tool), *options, str(file)], capture_output=True, text=True, check=True).stdout
