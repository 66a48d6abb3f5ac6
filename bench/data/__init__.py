"""The texts that models are adapted to and judged on: reviews, Wikipedia, and Alice for the tests."""

from __future__ import annotations

from bench.data.base import CORPORA, Corpus, Example, Split, block_split, evenly, register, without_duplicates
from bench.data.batches import Batch, LikeLengths, Texts, Windows, long_enough, windows_of
from bench.models.fingerprint import digest_of

from bench.data import alice, reviews, wikipedia  # isort: skip  (corpora register themselves)

__all__ = [
    "CORPORA",
    "Batch",
    "Corpus",
    "Example",
    "LikeLengths",
    "Split",
    "Texts",
    "Windows",
    "alice",
    "block_split",
    "evenly",
    "fingerprint",
    "long_enough",
    "register",
    "reviews",
    "wikipedia",
    "windows_of",
    "without_duplicates",
]


def fingerprint(name: str) -> str:
    """sha256 (hex) of the files of the corpus `name` and of the recipe by which they are read."""
    if name not in CORPORA:
        raise ValueError(f"unknown corpus {name!r}; known: {', '.join(CORPORA)}")
    corpus = CORPORA[name]
    return digest_of(corpus.content(), corpus.recipe)
