"""Weights and calibrations that tests draw."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quant import METHODS, Calibration, QuantizedTensor, Quantizer, linears


def gaussian(n: int, k: int, seed: int = 0) -> Tensor:
    """[n, k] of the size of a model's weights."""
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.05


def inputs(m: int, k: int, seed: int = 0, rho: float = 0.8) -> Tensor:
    """Rows [m, k] whose neighbouring features correlate by `rho`, every sixteenth being ten times as large."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(m, k, generator=generator, dtype=torch.float64)
    x = noise.clone()
    for j in range(1, k):
        x[:, j] = rho * x[:, j - 1] + (1 - rho**2) ** 0.5 * noise[:, j]
    x[:, ::16] *= 10
    return x.float()


def calibration_of(n: int, k: int, seed: int = 0, rows: int | None = None) -> Calibration:
    """The statistics of `inputs`, 4 k rows by default, and a Fisher information that varies over three decades."""
    x = inputs(rows or 4 * k, k, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    fisher = 10.0 ** (-3 * torch.rand(n, k, generator=generator))
    return Calibration(x.T @ x / len(x), x.abs().mean(0), fisher, len(x))


def calibrations(model: nn.Module) -> dict[str, Calibration]:
    """`calibration_of` of every linear layer, by name."""
    return {name: calibration_of(layer.out_features, layer.in_features) for name, layer in linears(model).items()}


def fitted(quantizer: Quantizer, weight: Tensor) -> tuple[Quantizer, Calibration]:
    """The quantizer as it is for a model of the one layer, and that layer's calibration."""
    known = calibration_of(*weight.shape)
    return quantizer.for_layers({"layer": weight}, {"layer": known})["layer"], known


def quantize(method: str | Quantizer, weight: Tensor) -> QuantizedTensor:
    """`weight` by a registered name or a quantizer, with a calibration where it needs one."""
    quantizer, known = fitted(METHODS[method] if isinstance(method, str) else method, weight)
    return quantizer.quantize(weight, known if quantizer.needs else None)
