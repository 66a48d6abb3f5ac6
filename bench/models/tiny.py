"""Tiny models with random weights and a byte tokenizer: the whole path without an asset, in milliseconds.

Their figures say that the code runs, not which method is good.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.models.base import Kind, Model, Source, register

__all__ = ["byte_tokenizer"]

NOTE = "random weights: checks that the code runs, ranks nothing"
SPREAD = 0.15  # of the initial weights; with the usual 0.02 so narrow a model does nothing but look up
SPECIAL = ("<pad>", "<eos>")


@lru_cache(maxsize=1)
def byte_tokenizer() -> Any:
    """A tokenizer of the 256 bytes of UTF-8, one token each, with <pad> and <eos>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *letters))}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=inner, pad_token=SPECIAL[0], eos_token=SPECIAL[1])


def _build(kind: Kind) -> nn.Module:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    size = len(byte_tokenizer())
    if kind == "encoder":
        bert = BertConfig(
            vocab_size=size,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=256,
            initializer_range=SPREAD,
            pad_token_id=0,
        )
        return BertModel(bert, add_pooling_layer=False)
    llama = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=256,
        initializer_range=SPREAD,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(llama)


def _load(spec: str, kind: Kind) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _build(kind)
    return Model(spec, kind, module.eval(), byte_tokenizer(), NOTE)


def _content(argument: str) -> tuple[Path, ...]:
    return (Path(__file__),)


def _encoder(argument: str) -> Model:
    return _load("tiny-encoder", "encoder")


def _causal(argument: str) -> Model:
    return _load("tiny-causal", "causal")


register(Source("tiny-encoder", "BERT, 2 x 64, random weights, for tests", _encoder, _content))
register(Source("tiny-causal", "Llama, 2 x 64, random weights, for tests", _causal, _content))
