"""Two-way classification of texts by an encoder, a head and an adapter: sentiment, and a toy task on Alice.

Texts are drawn from their pools at even spacing. Outputs are `logits` [n, 2] and `labels` [n] in the order of the
pool, and, where the task has it, `embeddings` [c, k]: mean-pooled states of the un-tuned backbone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.data import CORPORA, Batch, Texts, evenly
from bench.metrics import LABEL_METRICS, cosine_distance
from bench.models import Kind, Model
from bench.protocol import Protocol
from bench.tasks.base import Outputs, Rates, Task, device_of, mean_divergence, quiet, register
from bench.tasks.heads import Classifier

__all__ = ["Classification"]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a task that `Protocol` holds under the name of its texts."""

    train: int
    test: int
    tokens: int
    epochs: int


@dataclass(frozen=True)
class Classification(Task):
    """`texts` says under which sizes of the protocol it runs; with `cosine` it also judges the embeddings."""

    texts: Literal["sentence", "document"] = "sentence"
    cosine: bool = False

    kind: ClassVar[Kind] = "encoder"

    def sizes(self, protocol: Protocol) -> Sizes:
        """Counts of texts, tokens and epochs."""
        return Sizes(*(getattr(protocol, f"{self.texts}_{name}") for name in ("train", "test", "tokens", "epochs")))

    def rates(self, protocol: Protocol) -> Rates:
        return Rates(protocol.lora_lr, protocol.full_lr, protocol.head_lr, protocol.prompt_lr)

    def wrap(self, model: Model, seed: int) -> Classifier:
        config: Any = model.module.config
        return Classifier(model.module, int(config.hidden_size), seed)

    def train_texts(self, model: Model, protocol: Protocol) -> Texts:
        """The training texts, tokenized."""
        sizes = self.sizes(protocol)
        pool = CORPORA[self.corpora[0]].examples("train")
        return Texts(evenly(pool, sizes.train), model.tokenizer, sizes.tokens)

    def test_texts(self, model: Model, protocol: Protocol) -> Texts:
        """The held-out texts, tokenized."""
        sizes = self.sizes(protocol)
        pool = CORPORA[self.corpora[0]].examples("test")
        return Texts(evenly(pool, sizes.test), model.tokenizer, sizes.tokens)

    def batches(self, model: Model, protocol: Protocol, seed: int) -> DataLoader[Any]:
        return self.train_texts(model, protocol).shuffled(protocol.batch, seed)

    def steps(self, protocol: Protocol) -> int:
        sizes = self.sizes(protocol)
        return sizes.epochs * -(-sizes.train // protocol.batch)

    def calibration_batches(self, model: Model, protocol: Protocol, batch: int) -> DataLoader[Any]:
        sizes = self.sizes(protocol)
        pool = CORPORA[self.corpora[0]].examples("train")
        texts = evenly(pool, min(protocol.calibration_texts, len(pool)))
        return Texts(texts, model.tokenizer, sizes.tokens).by_length(batch)[0]

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = module(batch.input_ids, batch.attention_mask)
        return logits

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        if batch.labels is None:
            raise ValueError("a classifier trains on labelled texts")
        return nn.functional.cross_entropy(self.forward(module, batch), batch.labels)

    def divergence(self, logits: Tensor, reference: Tensor) -> Tensor:
        return mean_divergence(logits, reference)

    def outputs(
        self, module: nn.Module, model: Model, protocol: Protocol, baseline: Outputs | None, keep: bool = False
    ) -> Outputs:
        texts = self.test_texts(model, protocol)
        loader, order = texts.by_length(protocol.batch)
        device = device_of(model)
        with quiet(module):
            logits = torch.cat([module(b.input_ids, b.attention_mask) for b in (b.to(device) for b in loader)]).cpu()
        labels = torch.tensor([label for _, label in texts.rows])
        return {"logits": _placed(logits, order), "labels": labels}

    def embeddings(self, module: Classifier, model: Model, protocol: Protocol) -> Tensor:
        """Pooled states of `cosine_texts` held-out texts at even spacing, [c, k] on the CPU."""
        texts = self.test_texts(model, protocol)
        texts.rows = list(evenly(texts.rows, protocol.cosine_texts))
        loader, order = texts.by_length(protocol.batch)
        device = device_of(model)
        with quiet(module):
            rows = [module.embed(b.input_ids, b.attention_mask) for b in (b.to(device) for b in loader)]
        return _placed(torch.cat(rows).cpu(), order)

    def figures(self, outputs: Outputs, baseline: Outputs | None, protocol: Protocol, kin: bool) -> dict[str, Any]:
        sizes = self.sizes(protocol)
        where = f"{self.name}/test{sizes.test}/{sizes.tokens}tok@v1"
        out = {}
        for name, metric in LABEL_METRICS.items():
            if metric.compares and not (kin and baseline is not None):
                continue
            out[name] = metric(outputs, baseline, f"{name}/{where}")
        if "embeddings" in outputs and baseline is not None and "embeddings" in baseline:
            where = f"mean-pool/{self.name}/test{protocol.cosine_texts}/{sizes.tokens}tok@v1"
            out["cosine_distance"] = cosine_distance(outputs["embeddings"], baseline["embeddings"], where)
        return out


def _placed(rows: Tensor, order: Tensor) -> Tensor:
    """`rows` put back where `order` says that they come from."""
    out = torch.empty_like(rows)
    out[order] = rows
    return out


register(
    Classification("rotten-tomatoes", "sentiment of critics' sentences", ("rotten-tomatoes",), "sentence", cosine=True)
)
register(Classification("imdb", "sentiment of IMDB reviews", ("imdb",), "document"))
register(
    Classification("alice-labels", "which half of Alice a sentence is from", ("alice-halves",), "sentence", cosine=True)
)
