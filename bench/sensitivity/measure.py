"""One matrix of a causal model quantized, all else as it is: the change of what the model says.

    kl = mean over tokens of KL(p || p'),   p the model's distribution of the next token, p' that with one layer decoded

The text is the beginning of held-out Wikipedia articles in windows; a window is one item of the interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bench.reports.layers import split

__all__ = ["Text", "divergences", "log_probs", "quantized_weight", "spread"]

Text = Sequence[Tensor]  # windows, token ids [t] each


def spread(layers: Sequence[str], every: int) -> list[str]:
    """The layers of every `every`-th block from the first on, in the order of the model."""
    depths = sorted({split(name)[1] for name in layers})
    chosen = set(depths[::every])
    return [name for name in layers if split(name)[1] in chosen]


@torch.inference_mode()
def log_probs(module: nn.Module, text: Text) -> list[Tensor]:
    """Log-probabilities of the next token [t - 1, v] float32 of each window."""
    ids = torch.stack(list(text))
    logits: Tensor = module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return list(logits[:, :-1].float().log_softmax(-1))


@contextmanager
def quantized_weight(layer: nn.Linear, decoded: Tensor) -> Iterator[None]:
    """`decoded` [n, k] in place of the weight of `layer`, which is put back at the end."""
    kept = layer.weight
    layer.weight = nn.Parameter(decoded.to(kept.dtype), requires_grad=False)
    try:
        yield
    finally:
        layer.weight = kept


def divergences(
    module: nn.Module, layers: Mapping[str, nn.Linear], name: str, decoded: Tensor, text: Text, base: Sequence[Tensor]
) -> list[float]:
    """The mean KL divergence of each window, nats a token, with `decoded` as the weight of the layer `name`."""
    with quantized_weight(layers[name], decoded):
        now = log_probs(module, text)
    pairs = zip(base, now, strict=True)
    return [float((p.exp() * (p - q)).sum(-1).clamp(min=0).double().mean()) for p, q in pairs]
