"""Channel permutations that leave the function of a Llama-like model as it is and move its weights off any group grid.

A checkpoint that was itself stored in 4-bit groups of 32 columns lies, once dequantized, on 16 levels per group, and a
4-bit method with the same groups would look lossless. Reordering channels consistently changes nothing but the order
of sums: with permutation matrices P (residual stream), R (inner width of an MLP), S (width of a value head),

    W_in P^T x P = W_in x,   W_down R^T act(R W_gate x) = W_down act(W_gate x),   W_o S^T S W_v x = W_o W_v x,

and the RMS norm commutes with P when its weight is permuted too. Groups of neighbours are then drawn from many groups
of the stored file. Queries and keys stay: rotary embeddings tie their channels to positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["permute_channels"]


@torch.no_grad()
def permute_channels(model: Any, seed: int = 0) -> None:
    """Permute the channels of a transformers LlamaForCausalLM in place, by a generator seeded with `seed`.

    The logits change by floating-point reordering only. Raises ValueError for biases, which no Llama here has.
    """
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    residual = torch.randperm(config.hidden_size, generator=generator)
    body = model.model
    _columns(body.embed_tokens, residual)
    if not config.tie_word_embeddings:
        _columns(model.lm_head, residual)
    _rows(body.norm, residual)
    for layer in body.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            _rows(norm, residual)
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            _columns(reader, residual)
        for writer in (attention.o_proj, mlp.down_proj):
            _rows(writer, residual)
        inner = torch.randperm(config.intermediate_size, generator=generator)
        _rows(mlp.gate_proj, inner)
        _rows(mlp.up_proj, inner)
        _columns(mlp.down_proj, inner)
        within = [torch.randperm(width, generator=generator) for _ in range(kv_heads)]
        _rows(attention.v_proj, torch.cat([h * width + within[h] for h in range(kv_heads)]))
        shared = heads // kv_heads
        _columns(attention.o_proj, torch.cat([h * width + within[h // shared] for h in range(heads)]))


def _rows(module: Any, order: Tensor) -> None:
    """Reorder the outputs of a linear layer, or the channels of a norm."""
    if getattr(module, "bias", None) is not None:
        raise ValueError(f"channel permutation expects no bias, {type(module).__name__} has one")
    module.weight.copy_(module.weight[order])


def _columns(module: Any, order: Tensor) -> None:
    """Reorder the inputs of a linear layer, or the channels of an embedding."""
    module.weight.copy_(module.weight[:, order])
