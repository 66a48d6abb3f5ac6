"""Changes of channels that leave the function of a Llama-like model as it is and move its weights off any group grid.

A checkpoint that was itself stored in 4-bit groups of 32 columns lies, once dequantized, on 16 levels per group, and a
4-bit method with the same groups would look lossless. Changing channels consistently changes nothing but the rounding
of sums: with permutation matrices P (residual stream) and R (inner width of an MLP), and any orthogonal S (width of a
value head),

    W_in P^T x P = W_in x,   W_down R^T act(R W_gate x) = W_down act(W_gate x),   W_o S^T S W_v x = W_o W_v x,

and the RMS norm commutes with P when its weight is permuted too. Groups of neighbours are then drawn from many groups
of the stored file. A value head is too narrow for that: a group of 64 of its columns in W_o holds two stored groups in
any order. So S also turns its channels in random pairs, by angles from pi/8 to 3 pi/8: enough to leave the grid, and
far from a full rotation, which would make the weights Gaussian. Queries and keys stay: rotary embeddings tie their
channels to positions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["permute_channels"]


@torch.no_grad()
def permute_channels(model: Any, seed: int = 0) -> None:
    """Permute, and turn within value heads, the channels of a transformers LlamaForCausalLM in place.

    `seed` is that of the generator. The logits change by floating-point rounding only. Raises ValueError
    for biases, which no Llama here has.
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
        if attention.v_proj.bias is not None:
            raise ValueError("channels can be changed without biases only, v_proj has one")
        turns = [_turn(width, generator) for _ in range(kv_heads)]
        shared = heads // kv_heads
        for h, block in enumerate(attention.v_proj.weight.split(width)):
            block.copy_(turns[h] @ block.double())
        for h, block in enumerate(attention.o_proj.weight.split(width, dim=1)):
            block.copy_(block.double() @ turns[h // shared].T)


def _turn(width: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix [width, width] float64: channels in random pairs, each turned by a random angle."""
    order = torch.randperm(width, generator=generator)
    pairs = width // 2
    angle = (1 + 2 * torch.rand(pairs, generator=generator, dtype=torch.float64)) * math.pi / 8
    out = torch.eye(width, dtype=torch.float64)
    first, second = torch.arange(pairs), torch.arange(pairs) + pairs
    out[first, first] = out[second, second] = angle.cos()
    out[first, second], out[second, first] = -angle.sin(), angle.sin()
    return out[:, order]


def _rows(module: Any, order: Tensor) -> None:
    """Reorder the outputs of a linear layer, or the channels of a norm."""
    if getattr(module, "bias", None) is not None:
        raise ValueError(f"channels can be changed without biases only, {type(module).__name__} has one")
    module.weight.copy_(module.weight[order])


def _columns(module: Any, order: Tensor) -> None:
    """Reorder the inputs of a linear layer, or the channels of an embedding."""
    module.weight.copy_(module.weight[:, order])
