"""x W^T as a function of autograd: of a frozen quantized weight the gradient reaches x, and the fields that learn.

Nothing dense is kept for the backward pass, which decodes the weight again or multiplies with it as it is stored.
Source: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quant.core import from_config

if TYPE_CHECKING:
    from quant.linear import QuantizedLinear

__all__ = ["Product"]


class Product(torch.autograd.Function):
    """x [..., k] times the weight of `layer`, whose trainable fields are `learned`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear, *learned: Tensor) -> Tensor:
        ctx.layer, ctx.learned = layer, learned
        ctx.save_for_backward(x if any(t.requires_grad for t in learned) else None)
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        layer: QuantizedLinear = ctx.layer
        dx = layer.transposed(dy) if ctx.needs_input_grad[0] else None
        grads: list[Tensor | None] = [None] * len(ctx.learned)
        wanted = [i for i, t in enumerate(ctx.learned) if ctx.needs_input_grad[2 + i]]
        if wanted:
            (x,) = ctx.saved_tensors
            dw = dy.reshape(-1, layer.out_features).float().T @ x.reshape(-1, layer.in_features).float()
            with torch.enable_grad():
                copies = {layer.trainable[i]: ctx.learned[i].detach().requires_grad_() for i in wanted}
                stored = {name: p.detach() for name, p in layer.stored().items()} | copies
                w = from_config(layer.config, stored).decode()
                found = torch.autograd.grad(w, list(copies.values()), dw)
            for i, grad in zip(wanted, found, strict=True):
                grads[i] = grad
        return dx, None, *grads
