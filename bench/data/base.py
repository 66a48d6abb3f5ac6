"""What a text collection is, how it is split, and the table of collections.

Neighbouring texts of a review collection are about the same film, so a random split would put one film on both sides.
`block_split` cuts each label's texts, in their stored order, into a leading train pool and a trailing test pool: at
most the film at the cut is shared. Duplicates are dropped before the split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

__all__ = [
    "CORPORA",
    "Corpus",
    "Example",
    "Split",
    "block_split",
    "evenly",
    "register",
    "without_duplicates",
]

Split = Literal["train", "test"]
TRAIN_SHARE = 0.7
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One text, and its label where the collection has labels (0 or 1 throughout)."""

    text: str
    label: int | None = None


@dataclass(frozen=True)
class Corpus:
    """A collection of texts. `examples(split)` gives the pool of a split in stored order, labels ascending.

    `content` are the files that it is read from; with `recipe` (how they are read) they make the fingerprint.
    """

    name: str
    idea: str
    examples: Callable[[Split], tuple[Example, ...]]
    content: Callable[[], tuple[Path, ...]]
    recipe: str


CORPORA: dict[str, Corpus] = {}


def register(corpus: Corpus) -> Corpus:
    """Enter `corpus` in `CORPORA`; a name is registered once."""
    if corpus.name in CORPORA:
        raise ValueError(f"corpus {corpus.name!r} is already registered")
    CORPORA[corpus.name] = corpus
    return corpus


def without_duplicates(examples: Iterable[Example]) -> tuple[Example, ...]:
    """The first of every text, whatever its label, in order."""
    seen: dict[str, Example] = {}
    for example in examples:
        seen.setdefault(example.text, example)
    return tuple(seen.values())


def block_split(examples: Sequence[Example], split: Split) -> tuple[Example, ...]:
    """Per label, the first 70 % (train) or the last 30 % (test) of `examples` in order; labels ascending."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    out: list[Example] = []
    for label in sorted({e.label for e in examples}, key=lambda value: -1 if value is None else value):
        block = [e for e in examples if e.label == label]
        cut = int(len(block) * TRAIN_SHARE)
        out += block[:cut] if split == "train" else block[cut:]
    return tuple(out)


def evenly(items: Sequence[T], n: int) -> tuple[T, ...]:
    """`n` of `items` at even spacing, in order: no chance in it, and every label and film block gets its share.

    Raises ValueError when fewer than `n` are there: a smaller sample would not be what the record says.
    """
    if n > len(items):
        raise ValueError(f"{n} texts are wanted and {len(items)} are there; ask for fewer")
    return tuple(items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n))
