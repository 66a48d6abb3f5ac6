"""Rates of the GPUs that times are predicted for, from their makers' data sheets.

Sources: NVIDIA A100, H100 SXM and H200 SXM data sheets and architecture white papers (four schedulers an SM, each
issuing one warp instruction a clock); AMD Instinct MI300X data sheet and CDNA3 white paper (four 16-lane SIMDs a
compute unit, so one 64-lane vector instruction a clock). The clock is the one at which the stated peak holds.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEVICES", "Device"]


@dataclass(frozen=True)
class Device:
    """A GPU: units (SMs or compute units), instructions a unit issues a clock, and rates in SI units.

    `warps_to_fill` warps keep all schedulers of a unit busy; `legacy_matrix` is the share of the tensor peak that the
    matrix instructions of a single warp reach.
    """

    name: str
    target: str
    units: int
    clock: float
    issue: float
    warps_to_fill: int
    bandwidth: float
    tensor: float
    legacy_matrix: float = 1.0


# Luo et al. 2024, arXiv 2402.13499: Hopper's single-warp matrix instructions reach 63 % of its peak
DEVICES = (
    Device("A100 80 GB", "sm_80", 108, 1.41e9, 4, 4, 2.04e12, 312e12),
    Device("H100 SXM", "sm_90", 132, 1.83e9, 4, 4, 3.35e12, 989e12, 0.63),
    Device("H200 SXM", "sm_90", 132, 1.83e9, 4, 4, 4.8e12, 989e12, 0.63),
    Device("MI300X", "gfx942", 304, 2.1e9, 1, 4, 5.3e12, 1307e12),
)
