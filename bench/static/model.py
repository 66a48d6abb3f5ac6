"""A model of a kernel's time from its instruction counts: the largest of three times that it cannot go below.

    bytes    every tensor of the launch read or written once / memory bandwidth
    issue    instructions of the busiest unit / instructions that it issues a second
    matrix   operations of the matrix instructions, padding included / tensor peak

Williams et al. 2009, "Roofline", with the issue rate for a second roof. Launch gaps, latency, cache misses and
pipelines narrower than the issue rate are not in it, so real times are longer; it says which roof is the lowest.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import Tensor

from bench.static.devices import Device
from kernels.aot import Compiled, is_matrix
from kernels.tuning import Launch

__all__ = ["Prediction", "matrix_operations", "predict", "traffic"]


@dataclass(frozen=True)
class Prediction:
    """Three lower bounds of a launch's time, in seconds."""

    bytes: float
    issue: float
    matrix: float

    @property
    def seconds(self) -> float:
        """The predicted time."""
        return max(self.bytes, self.issue, self.matrix)

    @property
    def bound(self) -> str:
        """Which of the three it is."""
        return max(("bytes", "issue", "matrix"), key=lambda name: getattr(self, name))


def predict(launch: Launch, built: Compiled, device: Device) -> Prediction:
    """The model for one compiled launch; `built` must be compiled for the device's target."""
    issued = sum(n for opcode, n in built.executed.items() if _issues(opcode))
    rounds = math.ceil(built.programs / device.units)  # programs of the busiest unit
    filled = min(1.0, rounds * built.warps / device.warps_to_fill)
    peak = device.tensor * (1.0 if _whole_group(built) else device.legacy_matrix)
    done = sum(n * matrix_operations(opcode) for opcode, n in built.executed.items()) * built.warps
    return Prediction(
        bytes=traffic(launch) / device.bandwidth,
        issue=issued * built.warps * rounds / (device.issue * filled * device.clock),
        matrix=done * rounds * device.units / peak,
    )


def traffic(launch: Launch) -> int:
    """Bytes of the tensors of a launch, each counted once."""
    tensors = {t.data_ptr(): t.nbytes for t in launch.arguments.values() if isinstance(t, Tensor)}
    return sum(tensors.values())


def matrix_operations(opcode: str) -> float:
    """Multiplications and additions of one matrix instruction of one warp, 0 for any other, in those of half precision.

    By the data sheets int8 takes half of their time, TF32 (AMD: XF32) twice, float32 on AMD eight times.

    >>> [matrix_operations(opcode) for opcode in ("HMMA.16816.F32.BF16", "HGMMA.64x64x16.F32.BF16", "FFMA")]
    [4096.0, 32768.0, 0.0]
    """
    if not is_matrix(opcode):
        return 0.0
    if opcode.startswith(("I", "v_mfma_i32")):
        cost = 0.5
    elif "TF32" in opcode or opcode.endswith("xf32"):
        cost = 2.0
    else:
        cost = 8.0 if re.search(r"x\d+_?f32$", opcode) else 1.0
    if found := re.search(r"\.168(\d+)", opcode):
        return cost * 2 * 16 * 8 * int(found[1])
    if found := re.search(r"(\d+)x(\d+)x(\d+)", opcode):
        m, n, k = map(int, found.groups())
        return cost * 2 * m * n * k / (1 if opcode.startswith("v_") else 4)  # a group of four warps shares one
    return 0.0


def _issues(opcode: str) -> bool:
    """Whether an instruction takes a slot of the vector pipeline: on AMD scalar and memory ones go beside it."""
    return not re.match(r"[a-z]", opcode) or (opcode.startswith("v_") and not is_matrix(opcode))


def _whole_group(built: Compiled) -> bool:
    return any("GMMA" in opcode for opcode in built.executed)
