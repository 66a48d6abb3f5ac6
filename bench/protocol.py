"""All sizes of an experiment: how models are adapted, on how much they are judged, how their speed is measured.

The defaults are those of the suite that a two-core machine finishes in about twenty minutes. `QUICK` is for tiny
models and a smoke run: its figures say that the code runs. Calibration is 30 to 70 times smaller than in the papers
(GPTQ: 128 x 2048 tokens, SqueezeLLM: 100 x 2048), and in the domain of the reviews, not of Wikipedia.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from quant.modules import DEFAULT_SKIP

__all__ = ["QUICK", "Protocol"]

FEWEST_ROUNDS = 6  # a median of fewer has no 95 % interval
SHARES = ("dropout", "warmup")
LISTS = ("targets", "skip", "calibration_corpora")
MAY_BE_ZERO = ("dropout", "warmup", "weight_decay")


@dataclass(frozen=True)
class Protocol:
    """Counts are of texts, tokens, steps or rounds as named; learning rates (`_lr`) are peaks of the schedule.

    Sentence tasks are those on single sentences, document tasks those on whole reviews; `lm_` is for causal models.
    """

    # the adapter: quant.LoRAConfig
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] | str = "all"

    # linear layers with a name that matches one of these patterns are not quantized, see quant.modules.skipped
    skip: tuple[str, ...] = DEFAULT_SKIP

    # the training loop: AdamW, linear warm-up over the share `warmup` of the steps, then linear decay to zero. Of
    # the rates that `bench.learning_rates` tried on texts that are judged nowhere none is shown to be better
    lora_lr: float = 4e-3
    full_lr: float = 1e-4
    head_lr: float = 2e-2
    prompt_lr: float = 3e-2
    lm_lora_lr: float = 4e-3
    lm_full_lr: float = 2e-4
    lm_head_lr: float = 2e-2
    lm_prompt_lr: float = 4e-2
    weight_decay: float = 0.01
    warmup: float = 0.1
    virtual_tokens: int = 8

    # classification
    batch: int = 16
    sentence_train: int = 704
    sentence_test: int = 256
    sentence_tokens: int = 48
    sentence_epochs: int = 1
    document_train: int = 512
    document_test: int = 128
    document_tokens: int = 128
    document_epochs: int = 1
    cosine_texts: int = 96

    # language modelling
    lm_steps: int = 10
    lm_batch: int = 4
    lm_tokens: int = 96
    window: int = 96
    wiki_tokens: int = 768
    review_tokens: int = 768

    # calibration: texts of the train pool for classification, windows of so many tokens for language modelling;
    # gradients, text by text, of about as many tokens of them as are named. Windows are of the corpus that the task
    # trains on, or else in equal parts of those of its corpora that are named
    calibration_texts: int = 256
    calibration_windows: int = 64
    calibration_tokens: int = 128
    calibration_gradient_tokens: int = 3072
    calibration_corpora: tuple[str, ...] = ()

    # speed
    speed_batch: int = 1
    prefill_tokens: int = 64
    train_batch: int = 2
    train_tokens: int = 64
    speed_rounds: int = 10
    speed_seconds: float = 2.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in LISTS:
                _check(field.name, value, whole=field.type == "int")
        if self.speed_rounds < FEWEST_ROUNDS:
            raise ValueError(f"speed_rounds must be at least {FEWEST_ROUNDS}, got {self.speed_rounds}")
        if self.targets != "all" and (isinstance(self.targets, str) or not self.targets):
            raise ValueError(f"targets must be 'all' or a list of layer names, got {self.targets!r}")
        if isinstance(self.skip, str):
            raise ValueError(f"skip must be a list of layer names, got {self.skip!r}")
        if isinstance(self.calibration_corpora, str):
            raise ValueError(f"calibration_corpora must be a list of corpora, got {self.calibration_corpora!r}")
        for name in ("wiki_tokens", "review_tokens"):
            if getattr(self, name) % self.window:
                raise ValueError(f"{name} must be a multiple of window ({self.window}), got {getattr(self, name)}")
        for name in ("window", "lm_tokens"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, or no token has a context; got {getattr(self, name)}")
        if self.cosine_texts > self.sentence_test:
            raise ValueError(f"cosine_texts ({self.cosine_texts}) must not exceed sentence_test ({self.sentence_test})")

    def settings(self) -> dict[str, Any]:
        """Every field as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def _check(name: str, value: Any, *, whole: bool) -> None:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, got {value!r}")
    if not math.isfinite(value) or value < 0 or (value == 0 and name not in MAY_BE_ZERO):
        raise ValueError(f"{name} must be {'zero or more' if name in MAY_BE_ZERO else 'positive'}, got {value!r}")
    if name in SHARES and value >= 1:
        raise ValueError(f"{name} is a share and must be below 1, got {value!r}")


QUICK = Protocol(
    rank=4,
    alpha=8.0,
    lora_lr=1e-2,
    full_lr=1e-3,
    lm_lora_lr=1e-2,
    lm_full_lr=1e-3,
    batch=16,
    sentence_train=64,
    sentence_test=32,
    document_train=32,
    document_test=32,
    document_tokens=64,
    cosine_texts=32,
    virtual_tokens=4,
    lm_steps=6,
    lm_tokens=64,
    window=64,
    wiki_tokens=512,
    review_tokens=512,
    calibration_texts=32,
    calibration_windows=8,
    calibration_tokens=64,
    calibration_gradient_tokens=256,
    prefill_tokens=32,
    train_tokens=32,
    speed_rounds=6,
    speed_seconds=0.2,
)
