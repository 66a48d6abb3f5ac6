"""Language modelling: a causal model is adapted to one kind of text and judged on held-out text of that and others.

Every window is the beginning of its own text, so windows are independent. Outputs are, for each text T of the task:
`T.nll`, `T.kl`, `T.top1`, all [w] float64: the means over a window's w predicted tokens of -log p(token), of
KL(baseline || model) and of whether both find the same token most likely; and, when kept for comparison,
`T.log_probs` [w, t - 1, v] float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.data import CORPORA, Batch, Example, Windows, evenly, long_enough, windows_of
from bench.metrics import TEXT_METRICS
from bench.models import Kind, Model
from bench.protocol import Protocol
from bench.tasks.base import Outputs, Rates, Task, device_of, mean_divergence, quiet, register

__all__ = ["Language"]

AT_ONCE = 4  # windows judged in one forward pass: a larger product is 13 % faster, the logits stay below 100 MB


@dataclass(frozen=True)
class Language(Task):
    """Trained on the train pool of `corpora[0]`; `judged` are (text name, corpus, field of `Protocol` with its size).

    Each text name ends the names of its metrics in `bench.schema.METRICS`.
    """

    judged: tuple[tuple[str, str, str], ...] = ()

    kind: ClassVar[Kind] = "causal"

    def rates(self, protocol: Protocol) -> Rates:
        return Rates(protocol.lm_lora_lr, protocol.lm_full_lr, protocol.lm_head_lr, protocol.lm_prompt_lr)

    def wrap(self, model: Model, seed: int) -> nn.Module:
        return model.module

    def batches(self, model: Model, protocol: Protocol, seed: int) -> DataLoader[Any]:
        pool = CORPORA[self.corpora[0]].examples("train")
        wanted = protocol.lm_steps * protocol.lm_batch
        fitting = min(wanted, len(long_enough(pool, protocol.lm_tokens)))
        windows = windows_of(pool, model.tokenizer, fitting, protocol.lm_tokens)
        return windows.shuffled(protocol.lm_batch, seed)

    def steps(self, protocol: Protocol) -> int:
        return protocol.lm_steps

    def calibration_batches(self, model: Model, protocol: Protocol, batch: int) -> list[Batch]:
        corpora = protocol.calibration_corpora or self.corpora[:1]
        rows: list[Tensor] = []
        for i, corpus in enumerate(corpora):
            pool = long_enough(self._unjudged(corpus, protocol), protocol.calibration_tokens)
            share = (i + 1) * protocol.calibration_windows // len(corpora) - len(rows)
            count = min(share, len(pool))
            rows += windows_of(pool, model.tokenizer, count, protocol.calibration_tokens).tokens
        return [Windows.collate(rows[start : start + batch]) for start in range(0, len(rows), batch)]

    def _unjudged(self, corpus: str, protocol: Protocol) -> tuple[Example, ...]:
        """The train pool of the corpus that is trained on; of another one of the task, the texts that do not judge."""
        if corpus == self.corpora[0]:
            return CORPORA[corpus].examples("train")
        if corpus not in self.corpora:
            known = ", ".join(self.corpora)
            raise ValueError(
                f"calibration_corpora: {corpus!r} is no corpus of the task {self.name!r}, which has {known}"
            )
        pool = CORPORA[corpus].examples("test")
        sizes = [getattr(protocol, size) // protocol.window for _, name, size in self.judged if name == corpus]
        judges = {e.text for n in sizes for e in evenly(long_enough(pool, protocol.window), n)}
        return tuple(e for e in pool if e.text not in judges)

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        return _logits(module, batch)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        logits = _logits(module, batch)[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch.input_ids[:, 1:].flatten())

    def divergence(self, logits: Tensor, reference: Tensor) -> Tensor:
        return mean_divergence(logits[:, :-1], reference[:, :-1])

    def windows(self, model: Model, protocol: Protocol, text: str) -> Windows:
        """The held-out windows of the judged text `text`, [w, protocol.window]."""
        corpus, size = next((c, s) for name, c, s in self.judged if name == text)
        n = getattr(protocol, size) // protocol.window
        return windows_of(CORPORA[corpus].examples("test"), model.tokenizer, n, protocol.window)

    def outputs(
        self, module: nn.Module, model: Model, protocol: Protocol, baseline: Outputs | None, keep: bool = False
    ) -> Outputs:
        out: dict[str, Tensor] = {}
        device = device_of(model)
        for text, _, _ in self.judged:
            windows = self.windows(model, protocol, text)
            reference = None if baseline is None else baseline.get(f"{text}.log_probs")
            scores: dict[str, list[Tensor]] = {}
            with quiet(module):
                for start in range(0, len(windows), AT_ONCE):
                    chosen = range(start, min(start + AT_ONCE, len(windows)))
                    batch = Windows.collate([windows[i] for i in chosen]).to(device)
                    for i, logits, ids in zip(chosen, _logits(module, batch), batch.input_ids, strict=True):
                        beside = None if reference is None else reference[i].to(device)
                        for name, value in _scores(logits, ids, beside).items():
                            if keep or name != "log_probs":
                                scores.setdefault(name, []).append(value.cpu())
            out |= {f"{text}.{name}": torch.stack(values) for name, values in scores.items()}
        return out

    def figures(self, outputs: Outputs, baseline: Outputs | None, protocol: Protocol, kin: bool) -> dict[str, Any]:
        out = {}
        for text, _, size in self.judged:
            where = f"token/ctx{protocol.window}/{text}{getattr(protocol, size)}@v1"
            for name, metric in TEXT_METRICS.items():
                if metric.compares and not (kin and f"{text}.{metric.reads}" in outputs):
                    continue
                here = outputs[f"{text}.{metric.reads}"]
                base = None if baseline is None else baseline.get(f"{text}.{metric.reads}")
                out[f"{name}_{text}"] = metric(here, base, f"{name}/{where}")
        return out


def _logits(module: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits


def _scores(logits: Tensor, ids: Tensor, reference: Tensor | None) -> dict[str, Tensor]:
    """Scores of one window: `logits` [t, v], `ids` [t], `reference` log-probabilities [t - 1, v] of the baseline."""
    log_probs = logits[:-1].float().log_softmax(-1)
    chosen = log_probs.gather(-1, ids[1:, None])
    out = {"nll": -chosen.double().mean(), "log_probs": log_probs}
    if reference is not None:
        out["kl"] = (reference.exp() * (reference - log_probs)).sum(-1).clamp(min=0).double().mean()
        out["top1"] = (reference.argmax(-1) == log_probs.argmax(-1)).double().mean()
    return out


register(
    Language(
        "reviews",
        "next token: adapted to IMDB reviews, judged on held-out reviews and Wikipedia",
        ("imdb", "wikipedia"),
        (("reviews", "imdb", "review_tokens"), ("wiki", "wikipedia", "wiki_tokens")),
    )
)
register(
    Language(
        "alice",
        "next token: adapted to Alice, judged on its last third",
        ("alice",),
        (("alice", "alice", "review_tokens"),),
    )
)
