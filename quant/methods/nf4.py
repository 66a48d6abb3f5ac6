"""NF4 and its relatives: quantiles of the normal distribution as levels, one absolute maximum a group.

w ~ levels[code] * max|group|, code = nearest level of w / max|group|. A k-bit table holds 2**(k-1) + 1 non-negative and
2**(k-1) non-positive values, quantiles of N(0, 1) at even steps of probability from delta to 1/2 with
delta = (1/2**(k+1) + 1/(2**(k+1) - 2)) / 2, both parts divided by their largest value and sharing one zero.
Source: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3. The 4-bit table is given by bitsandbytes' float32
constants, from which the formula departs by 2e-7; codes equal that library's (its blocks run over the flattened
weight: the same as ours when `group` divides k, see `Flat` otherwise).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packing import pack
from quant.core import Calibration, QuantizedTensor, Quantizer, register
from quant.formats import FixedCodebook
from quant.grouping import Group, check_group, check_scale, decode_scale, grouped, inverse_of, largest_of, store_scale
from quant.methods.double import DynamicMap, Flat
from quant.methods.uniform import Uniform
from quant.nearest import nearest_in_groups

__all__ = ["NF", "NF4_LEVELS", "normal_float"]

NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def normal_float(bits: int) -> Tensor:
    """The formula's table, [2**bits] ascending float64 from -1 to 1.

    >>> normal_float(2).tolist()[1:3]
    [0.0, 0.4358181645831157]
    """
    count = 1 << (bits - 1)
    delta = (1 / (4 * count) + 1 / (4 * count - 2)) / 2
    upper = torch.special.ndtri(torch.linspace(0.5, 1 - delta, count + 1, dtype=torch.float64))
    lower = torch.special.ndtri(torch.linspace(1 - delta, 0.5, count, dtype=torch.float64))
    return torch.cat([-lower / lower[0], upper[1:] / upper[-1]]) + 0.0


@dataclass(frozen=True)
class NF(Quantizer):
    """`bits` 2..8; `group` an int, "channel" or "tensor"; `scale` a dtype name or a quantizer for the maxima.

    `against` says which maximum the codes are chosen with: the "original" (bitsandbytes) or the "stored" one, which
    differ when the maxima are themselves quantized.
    """

    bits: int = 4
    group: Group = 64
    scale: str | Quantizer = "float32"
    against: str = "original"

    source = "Dettmers et al. 2023 (QLoRA), arXiv 2305.14314; bitsandbytes"
    idea = "levels at the quantiles of a normal distribution"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be 2..8, got {self.bits}")
        check_group(self.group)
        check_scale(self.scale)
        if self.against not in ("original", "stored"):
            raise ValueError(f"against must be 'original' or 'stored', got {self.against!r}")

    @property
    def family(self) -> str:
        return "double quantization" if isinstance(self.scale, Quantizer) else "nf4"

    @property
    def levels(self) -> Tensor:
        """The table [2**bits] float32, ascending."""
        return torch.tensor(NF4_LEVELS) if self.bits == 4 else normal_float(self.bits).float()

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        n, k = weight.shape
        levels = self.levels.to(weight.device)
        largest = largest_of(grouped(weight, self.group))
        scale = store_scale(largest, self.scale)
        chosen = largest if self.against == "original" else decode_scale(scale)
        codes = nearest_in_groups(weight, inverse_of(chosen), levels, self.group)
        packed = pack(codes, self.bits)
        return FixedCodebook((n, k), torch.float32, packed, levels[None], scale, None, self.bits, self.group, 0)


register("nf4-g64", NF())
register("nf4-g128", NF(group=128))
register("nf3-g64", NF(bits=3))
register("nf2-g64", NF(bits=2))
register("nf4-g64-dq", NF(scale=DynamicMap()))
register("nf4-g64-e4m3", NF(scale="e4m3", against="stored"))
register("nf4-g64-dq-int8", NF(scale=Flat(Uniform(8, 256, zero="integer", scale="float32"))))
