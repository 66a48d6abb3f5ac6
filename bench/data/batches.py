"""From texts to batches: tokenized data sets, padding, batches of like length, and windows of running text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bench.data.base import Example, evenly

__all__ = ["Batch", "LikeLengths", "Texts", "Windows", "long_enough", "windows_of"]

CHARACTERS_PER_TOKEN = 6  # a text of this many characters a token or more fills its window, in English prose
NEARBY = 16  # batches that are sorted by length together


@dataclass(frozen=True, eq=False)
class Batch:
    """`input_ids` and `attention_mask` [m, t] int64, `labels` [m] int64 (absent for running text)."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> Batch:
        labels = None if self.labels is None else self.labels.to(device)
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), labels)


class Texts(Dataset[tuple[list[int], int]]):
    """Tokenized labelled texts, cut to `max_tokens`; `collate` pads to the longest of a batch."""

    def __init__(self, examples: Sequence[Example], tokenizer: Any, max_tokens: int) -> None:
        ids = tokenizer([e.text for e in examples], truncation=True, max_length=max_tokens)["input_ids"]
        self.rows = [(row, 0 if e.label is None else e.label) for row, e in zip(ids, examples, strict=True)]
        self.pad = int(tokenizer.pad_token_id)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[list[int], int]:
        return self.rows[index]

    def collate(self, rows: Sequence[tuple[list[int], int]]) -> Batch:
        longest = max(len(ids) for ids, _ in rows)
        input_ids = torch.tensor([ids + [self.pad] * (longest - len(ids)) for ids, _ in rows])
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
        return Batch(input_ids, mask, torch.tensor([label for _, label in rows]))

    def shuffled(self, batch: int, seed: int) -> DataLoader[Any]:
        """Batches in a seeded order, each of texts of like length; a new pass continues the sequence of orders."""
        sampler = LikeLengths([len(ids) for ids, _ in self.rows], batch, seed)
        return DataLoader(self, batch_sampler=sampler, collate_fn=self.collate)

    def by_length(self, batch: int) -> tuple[DataLoader[Any], Tensor]:
        """Batches of ascending length, and for each place in that order the index of its text, [n]."""
        order = sorted(range(len(self)), key=lambda i: len(self.rows[i][0]))
        chunks = [order[i : i + batch] for i in range(0, len(order), batch)]
        return DataLoader(self, batch_sampler=chunks, collate_fn=self.collate), torch.tensor(order)


class LikeLengths(Sampler[list[int]]):
    """Batches of like length in a seeded order: shuffle, sort runs of 16 batches by length, shuffle the batches."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch = lengths, batch
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.lengths), generator=self.generator).tolist()
        near = self.batch * NEARBY
        batches: list[list[int]] = []
        for start in range(0, len(order), near):
            block = sorted(order[start : start + near], key=lambda i: self.lengths[i])
            batches += [block[i : i + self.batch] for i in range(0, len(block), self.batch)]
        for i in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[i]


class Windows(Dataset[Tensor]):
    """Windows of running text, `tokens` [n, window] int64, one to a document, so that windows are independent."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Tensor:
        return self.tokens[index]

    @staticmethod
    def collate(rows: Sequence[Tensor]) -> Batch:
        ids = torch.stack(list(rows))
        return Batch(ids, torch.ones_like(ids))

    def shuffled(self, batch: int, seed: int) -> DataLoader[Any]:
        """Full batches in a seeded order."""
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(
            self, batch_size=batch, shuffle=True, drop_last=True, generator=generator, collate_fn=self.collate
        )


def windows_of(examples: Sequence[Example], tokenizer: Any, n: int, window: int) -> Windows:
    """The first `window` tokens of `n` texts at even spacing among those long enough to fill one.

    Raises ValueError when there are fewer than `n` such texts.
    """
    found = long_enough(examples, window)
    if n > len(found):
        raise ValueError(f"{n} windows of {window} tokens are wanted and {len(found)} texts are long enough")
    texts = [e.text for e in evenly(found, n)]
    rows = tokenizer(texts, truncation=True, max_length=window, add_special_tokens=False)["input_ids"]
    if short := [len(row) for row in rows if len(row) < window]:
        raise ValueError(f"{len(short)} of {n} texts fill no window of {window} tokens: the shortest has {min(short)}")
    return Windows(torch.tensor(rows))


def long_enough(examples: Sequence[Example], window: int) -> tuple[Example, ...]:
    """Those of `examples` whose text fills a window of so many tokens."""
    return tuple(e for e in examples if len(e.text) >= CHARACTERS_PER_TOKEN * window)
