"""What a kernel becomes on a GPU that is not here: registers, spills, shared memory and instructions, by compiling it.

Triton compiles for a `GPUTarget` without a driver, and its wheel ships NVIDIA's disassembler. NVIDIA figures are read
from the cubin (`cuobjdump -res-usage`, `nvdisasm`), AMD figures from the assembly's own metadata. Triton does not check
the shared memory limit when it compiles ahead of time, so the limits of the targets are stated here.
Sources: CUDA C++ Programming Guide, technical specifications per compute capability; AMD CDNA3 ISA guide.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.tuning import OPTIONS, Launch

__all__ = ["TARGETS", "Compiled", "Target", "compile_launch"]

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Target:
    """A GPU to compile for, and the shared memory one program may use there, in bytes."""

    gpu: GPUTarget
    shared_limit: int


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 * 1024),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * 1024),
}


@dataclass(frozen=True)
class Compiled:
    """Figures of one compiled kernel; `instructions` counts the machine instructions by opcode without no-ops."""

    target: str
    registers: int
    spills: int
    shared: int
    instructions: Mapping[str, int]

    @property
    def size(self) -> int:
        """Machine instructions in all."""
        return sum(self.instructions.values())

    @property
    def tensor_core(self) -> int:
        """Matrix instructions: HMMA, HGMMA, IMMA ... on NVIDIA, v_mfma ... on AMD."""
        return sum(n for op, n in self.instructions.items() if "MMA" in op.split(".")[0] or op.startswith("v_mfma"))


def compile_launch(launch: Launch, target: str, config: triton.Config | None = None) -> Compiled:
    """Compile `launch` as Triton's launcher would specialize it, for a name in `TARGETS`.

    `config` is one of the kernel's configurations (default: the first). Raises ValueError for an interpreted kernel.
    """
    if launch.kernel.interpreted:
        raise ValueError("an interpreted kernel cannot be compiled: import it without TRITON_INTERPRET")
    config = config or launch.kernel.configs[0]
    values = {**launch.arguments, **config.kwargs}
    signature, constants, attributes = _specialize(launch.kernel.fn, values)
    source = ASTSource(fn=launch.kernel.fn, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **OPTIONS}
    built = triton.compile(source, target=TARGETS[target].gpu, options=options)
    shared = int(built.metadata.shared)
    if "cubin" in built.asm:
        return _nvidia(target, built.asm["cubin"], shared)
    return _amd(target, built.asm["amdgcn"], shared)


def _specialize(fn: Any, values: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Signature, constants and divisibility hints by Triton's rules: None and 1 are constants, 16 divides or not."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[Any, Any] = {}
    for i, parameter in enumerate(fn.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = f"*{TYPES[value.dtype]}"
            aligned = value.data_ptr() % 16 == 0
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _nvidia(target: str, cubin: bytes, shared: int) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = _output("cuobjdump", "-res-usage", file)
        listing = _output("nvdisasm", "-c", file)
    registers = re.search(r"REG:(\d+)", usage)
    if registers is None:
        raise ValueError(f"cuobjdump reports no registers for {target}: {usage!r}")
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listing)
    counts = Counter(op for op in opcodes if op.split(".")[0] != "NOP")
    spills = sum(n for op, n in counts.items() if op.split(".")[0] in ("STL", "LDL"))
    return Compiled(target, int(registers[1]), spills, shared, counts)


def _amd(target: str, assembly: str, shared: int) -> Compiled:
    def figure(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        if found is None:
            raise ValueError(f"the {target} assembly states no {name}")
        return int(found[1])

    opcodes = re.findall(r"^\s+((?:v|s|ds|global|buffer|flat|scratch)_\w+)", assembly, re.MULTILINE)
    counts = Counter(op for op in opcodes if op != "s_nop")
    spills = figure("vgpr_spill_count") + figure("sgpr_spill_count")
    return Compiled(target, figure("vgpr_count"), spills, shared, counts)


def _output(tool: str, *arguments: object) -> str:
    command = [str(BIN / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
