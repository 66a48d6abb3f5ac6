"""The gemlite library: codes in its layout, back to weights through its kernels, and its own MXFP4 and NVFP4.

It runs on a CUDA device only. It stores integers for its kernels and leaves choosing them to others: here they are the
codes, scales and zero points of this suite's HQQ, the quantizer whose layers it is made for. A weight is decoded by
multiplying the identity with it, so that an error is that of the product which the library computes, in float16.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quant.core import Calibration, QuantizedTensor, UnsupportedError
from quant.formats import Affine
from quant.formats.foreign import Foreign
from quant.methods.fp4 import MXFP4
from quant.methods.hqq import HQQ
from quant.peers.base import Peer, register, register_control

__all__ = ["GemLite", "GemLiteFloat", "device_of"]

PARTS = {"W_q": "codes", "scales": "scales", "zeros": "zeros", "meta_scale": "constants"}
KINDS = ("mxfp4", "nvfp4")
MULTIPLE = 32  # the library takes columns in multiples of it


def device_of(home: torch.device) -> torch.device:
    """The CUDA device on which a weight at `home` is quantized; UnsupportedError without one."""
    if not torch.cuda.is_available():
        raise UnsupportedError("gemlite runs on a CUDA device only, and there is none")
    return home if home.type == "cuda" else torch.device("cuda")


class _OnDevice(Peer):
    """What both peers of this library share: where they run, and the way back."""

    package = "gemlite"

    @abstractmethod
    def _layer(self, weight: Tensor, device: torch.device) -> Any:
        """The library's layer that holds `weight` [n, k] on `device`."""

    @abstractmethod
    def _stored(self) -> tuple[str, ...]:
        """Names in `PARTS` of the layer's tensors that hold the weight."""

    @abstractmethod
    def _multiple(self) -> int:
        """The columns of a weight are a multiple of this."""

    def _quantize(self, weight: Tensor, calibration: Calibration | None) -> QuantizedTensor:
        home, k = weight.device, weight.shape[1]
        device = device_of(home)
        if k % self._multiple():
            raise UnsupportedError(f"gemlite takes columns in multiples of {self._multiple()} here, this has {k}")
        layer, names = self._layer(weight, device), self._stored()
        parts = [(PARTS[name], getattr(layer, name).detach().to(home)) for name in names]

        def decode(stored: Sequence[Tensor]) -> Tensor:
            for name, tensor in zip(names, stored, strict=True):
                setattr(layer, name, nn.Parameter(tensor.to(device), requires_grad=False))
            identity = torch.eye(k, dtype=torch.float16, device=device)
            dense: Tensor = layer(identity).T.float().to(home)
            return dense.contiguous()

        return Foreign.made(weight, self.package, parts, decode)


@dataclass(frozen=True)
class GemLite(_OnDevice):
    """HQQ's integers of `bits` 2 or 4 in groups of `group`, in the layout of the library's kernels."""

    bits: int = 4
    group: int = 64

    source = "gemlite, A16Wn.from_weights"
    idea = "integers of HQQ in the layout of gemlite's kernels"

    def __post_init__(self) -> None:
        if self.bits not in (2, 4) or self.group < MULTIPLE or self.group % MULTIPLE:
            raise ValueError(
                f"gemlite takes 2 or 4 bits and groups in multiples of {MULTIPLE}, got {self.bits} and {self.group}"
            )

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def family(self) -> str:
        return "uniform"

    def _stored(self) -> tuple[str, ...]:
        return ("W_q", "scales", "zeros")

    def _multiple(self) -> int:
        return math.lcm(self.group, MULTIPLE)

    def _layer(self, weight: Tensor, device: torch.device) -> Any:
        from gemlite.helper import A16Wn

        made = HQQ(self.bits, self.group).quantize(weight)  # where the weight is, as ours
        assert isinstance(made, Affine)
        assert isinstance(made.scale, Tensor)
        assert isinstance(made.zero, Tensor)
        if made.scale.dtype != torch.float16:
            raise UnsupportedError("gemlite keeps scales in float16, and those of this weight leave it; rescale it")
        codes, scale, zero = (t.to(device) for t in (made.unpacked(), made.scale, made.zero))
        return A16Wn(device=str(device)).from_weights(codes, scale, zero, self.bits, self.group)


@dataclass(frozen=True)
class GemLiteFloat(_OnDevice):
    """Four-bit floating point as the library quantizes to it: `kind` "mxfp4" or "nvfp4"."""

    kind: str = "mxfp4"

    source = "gemlite, WeightQuantizerMXFP"
    idea = "gemlite's own microscaling formats"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    @property
    def code_bits(self) -> int:
        return 4

    @property
    def family(self) -> str:
        return "non-uniform"

    def _stored(self) -> tuple[str, ...]:
        return ("W_q", "scales", "meta_scale") if self.kind == "nvfp4" else ("W_q", "scales")

    def _multiple(self) -> int:
        return MULTIPLE

    def _layer(self, weight: Tensor, device: torch.device) -> Any:
        from gemlite.helper import A16W4_MXFP, A16W4_NVFP

        n, k = weight.shape
        if not bool(weight.half().isfinite().all()):
            raise UnsupportedError("gemlite takes the weight in float16, which this one leaves; rescale it first")
        layer = nn.Linear(k, n, bias=False, device="meta")
        layer.weight = nn.Parameter(weight.half().to(device), requires_grad=False)
        maker = A16W4_MXFP if self.kind == "mxfp4" else A16W4_NVFP
        return maker(device=str(device), dtype=torch.float16).from_linear(layer)


_FOLDED = "it stores -zero * scale, rounded to float16, and computes the product in float16"
for _bits in (4, 2):
    register(f"peer-gemlite-hqq-{_bits}bit", GemLite(bits=_bits, ours=f"hqq-int{_bits}-g64", differs=_FOLDED))
register_control("control-mxfp4-ceil", MXFP4(rounding="ceil"))
register(
    "peer-gemlite-mxfp4",
    GemLiteFloat(
        kind="mxfp4",
        ours="control-mxfp4-ceil",
        beside=("mxfp4",),
        differs="it takes the weight in float16, and halfway between two levels it takes the lower one",
    ),
)
register(
    "peer-gemlite-nvfp4",
    GemLiteFloat(
        kind="nvfp4",
        ours="nvfp4",
        beside=("nvfp4-four-or-six",),
        differs="it takes the weight in float16, and scales below 1e-6 as that",
    ),
)
