"""What a kernel becomes on a GPU that is not here: registers, spills, shared memory and instructions, by compiling it.

Triton compiles for a `GPUTarget` without a driver, and its wheel ships NVIDIA's disassembler. NVIDIA figures are read
from the cubin and the PTX, AMD figures from the assembly and its own metadata.
Triton does not check the shared memory limit when it compiles ahead of time, so the targets' limits are stated here.
Sources: CUDA C++ Programming Guide, technical specifications per compute capability; AMD CDNA3 ISA guide.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import cubin, listing, ptx, trips
from kernels.tuning import OPTIONS, Launch

__all__ = [
    "TARGETS",
    "VERSION",
    "Compiled",
    "Target",
    "cache_folder",
    "code_key",
    "compile_launch",
    "compile_launches",
    "is_matrix",
]

VERSION = str(triton.__version__)
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Target:
    """A GPU to compile for, and the shared memory one program may use there, in bytes.

    `architecture` is the disassembler's name for it, if it is NVIDIA's.
    """

    gpu: GPUTarget
    shared_limit: int
    architecture: str = ""


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 * 1024, "SM80"),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 * 1024, "SM90a"),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 * 1024, "SM100a"),
    "sm_120": Target(GPUTarget("cuda", 120, 32), 99 * 1024, "SM120a"),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * 1024),
}


@dataclass(frozen=True)
class Compiled:
    """Figures of one compiled kernel; `instructions` counts the machine instructions by opcode without no-ops.

    `executed` counts what one warp runs of them, loops included, for the arguments of the launch; `loops_known` is
    False when the turns of some loop depend on what is in memory. `widths` are the bits of the widest load and store,
    on NVIDIA by argument. `inexact_divisions` are those that are not IEEE's, `fused` multiply-adds that round once
    and belong to no IEEE division.
    """

    target: str
    warps: int
    programs: int
    registers: int
    spills: int
    shared: int
    instructions: Mapping[str, int]
    executed: Mapping[str, float]
    loops_known: bool
    widths: Mapping[str, int]
    inexact_divisions: int
    fused: int

    @property
    def size(self) -> int:
        """Machine instructions in all."""
        return sum(self.instructions.values())

    @property
    def tensor_core(self) -> int:
        """Matrix instructions: HMMA, HGMMA, IMMA ... on NVIDIA, v_mfma ... on AMD."""
        return sum(n for op, n in self.instructions.items() if is_matrix(op))

    @property
    def thread_instructions(self) -> float:
        """Instructions that all threads of the launch run together."""
        lanes = int(TARGETS[self.target].gpu.warp_size)
        return sum(self.executed.values()) * self.warps * lanes * self.programs


def cache_folder() -> Path:
    """Where Triton keeps what it compiled."""
    return Path(triton.knobs.cache.dir)


def is_matrix(opcode: str) -> bool:
    """Whether a machine instruction runs on the matrix unit."""
    return "MMA" in opcode.split(".")[0] or opcode.startswith("v_mfma")


def compile_launch(launch: Launch, target: str, config: triton.Config | None = None) -> Compiled:
    """Compile `launch` as Triton's launcher would specialize it, for a name in `TARGETS`.

    `config` is one of the kernel's configurations (default: the first). Raises ValueError for an interpreted kernel.
    """
    return compile_launches([(launch, config or launch.kernel.configs[0])], target)[0]


def compile_launches(jobs: Sequence[tuple[Launch, triton.Config]], target: str) -> list[Compiled]:
    """Compile launches, each in its configuration, for a name in `TARGETS`; many at once take less time.

    What Triton raises is raised with the kernel, the configuration and the target in a note.
    """
    built = [_compiled(launch, target, config) for launch, config in jobs]
    cubins = [each.asm["cubin"] for each, _, _ in built if "cubin" in each.asm]
    texts = iter(cubin.disassembled(TARGETS[target].architecture, cubins) if cubins else [])
    return [_figures(each, target, grid, given, next(texts, "")) for each, grid, given in built]


def _compiled(launch: Launch, target: str, config: triton.Config) -> tuple[Any, tuple[int, ...], dict[str, Any]]:
    """What Triton returns, the grid, and the arguments that are given at run time."""
    if launch.kernel.interpreted:
        raise ValueError("an interpreted kernel cannot be compiled: import it without TRITON_INTERPRET")
    values = {**launch.arguments, **config.kwargs}
    if TARGETS[target].gpu.backend == "hip" and "PTX" in values:
        values["PTX"] = False  # by this name a kernel chooses between NVIDIA's assembly and Triton's own operations
    signature, constants, attributes = _specialize(launch.kernel.fn, values)
    source = ASTSource(fn=launch.kernel.fn, signature=signature, constexprs=constants, attrs=attributes)
    options = {**OPTIONS, **_options(launch, config)}
    try:
        built = triton.compile(source, target=TARGETS[target].gpu, options=options)
    except Exception as error:
        error.add_note(f"while compiling {launch.kernel.fn.__name__} for {target}: {config}, {launch.arguments}")
        raise
    given = {name: values[name] for name, kind in signature.items() if kind != "constexpr"}
    return built, launch.grid(values), given


def code_key(launch: Launch, config: triton.Config) -> Hashable:
    """Equal for launches that compile to the same code: constants that the kernel never reads are left out."""
    fn = launch.kernel.fn
    signature, constants, attributes = _specialize(fn, {**launch.arguments, **config.kwargs})
    read = {node.id for node in ast.walk(fn.parse()) if isinstance(node, ast.Name)}
    used = {name: value for name, value in constants.items() if name in read}
    return fn.__name__, str((signature, used, attributes)), str(_options(launch, config))


def _options(launch: Launch, config: triton.Config) -> dict[str, Any]:
    names = {parameter.name for parameter in launch.kernel.fn.params}
    own = {name: value for name, value in config.kwargs.items() if name not in names}
    if config.maxnreg is not None:
        own["maxnreg"] = config.maxnreg
    return {"num_warps": config.num_warps, "num_stages": config.num_stages, **own}


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


def _figures(built: Any, target: str, grid: tuple[int, ...], given: Mapping[str, Any], sass: str) -> Compiled:
    numbers = [value if isinstance(value, int) else None for value in given.values()]
    loops = trips.loops(built.asm["ttir"], numbers, grid)
    if "cubin" in built.asm:
        code = listing.nvidia(sass)
        registers = cubin.registers(built.asm["cubin"])
        spills = sum(n for op, n in code.counts.items() if op.split(".")[0] in ("STL", "LDL"))
        text = built.asm["ptx"]
        widths = ptx.widths(text, {i: name for i, (name, v) in enumerate(given.items()) if isinstance(v, Tensor)})
        inexact, fused = ptx.inexact_divisions(text), ptx.fused(text)
    else:
        text = built.asm["amdgcn"]
        code = listing.amd(text)
        registers = _stated(text, "vgpr_count")
        spills = _amd_spills(text)
        widths = listing.amd_widths(code)
        inexact, fused = listing.amd_rounding(text)
    return Compiled(
        target=target,
        warps=int(built.metadata.num_warps),
        programs=math.prod(grid),
        registers=registers,
        spills=spills,
        shared=int(built.metadata.shared),
        instructions=code.counts,
        executed=listing.executed(code, loops),
        loops_known=all(loop.all_known for loop in loops),
        widths=widths,
        inexact_divisions=inexact,
        fused=fused,
    )


def _amd_spills(assembly: str) -> int:
    """Registers spilled to memory; without memory of its own, scalar ones move to lanes of vector registers."""
    scalars = _stated(assembly, "sgpr_spill_count") if _stated(assembly, "private_segment_fixed_size") else 0
    return _stated(assembly, "vgpr_spill_count") + scalars


def _stated(assembly: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s+(\d+)", assembly)
    if found is None:
        raise ValueError(f"AMD's assembly states no {name}")
    return int(found[1])
