"""How fast the factors of an adapter learn, as shares of the learning rate, so that a large start does not run away.

A step of AdamW moves every entry of A [r, k] and B [n, r] by the rate. In the Frobenius norm that of B moves the
product by no more than the rate times sqrt(r n) ||A||, that of A by sqrt(r k) ||B||. In QLoRA, where B = 0 and
||A||^2 = r / 3, they move it by r sqrt(n / 3) and by nothing: the rate was chosen for that. Each factor gets the
largest share, up to 1, at which its first step moves the weights no farther than r sqrt(n / 3) times the rate. What a
pooled adapter does counts once for each column of a group. Whatever else is trained, a head, keeps the whole rate.
"""

from __future__ import annotations

from torch import Tensor, nn

from quant.lora import LoRALayer, adapted
from quant.pooled import PooledLoRALayer

__all__ = ["shares"]


def shares(module: nn.Module) -> dict[nn.Parameter, float]:
    """By factor, of every adapter that starts otherwise than that of QLoRA: its share of the learning rate."""
    out: dict[nn.Parameter, float] = {}
    for layer in adapted(module).values():
        lora = layer.lora
        assert isinstance(lora, LoRALayer | PooledLoRALayer)
        if isinstance(lora, LoRALayer) and not lora.B.detach().any():
            continue
        n, inner, rank = layer.out_features, lora.A.shape[1], lora.config.rank
        plain = rank * (n / 3) ** 0.5
        width = (rank * layer.in_features / inner) ** 0.5
        out[lora.A] = _share(plain, width * inner**0.5, lora.B)
        out[lora.B] = _share(plain, width * n**0.5, lora.A)
    return out


def _share(plain: float, reach: float, other: Tensor) -> float:
    """1, or less where a step moves the product by `reach` times the size of the `other` factor, beyond `plain`."""
    moved = reach * float(other.detach().norm())
    return 1.0 if moved <= plain else plain / moved
