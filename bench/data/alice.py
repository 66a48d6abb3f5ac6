"""Lewis Carroll, "Alice's Adventures in Wonderland" (1865): the one text that the repository itself carries.

The file is `alice29.txt` of the Canterbury corpus (The Millennium Fulcrum Edition 2.9), public domain, with Unix line
ends. Two collections are made of it: its paragraphs as running text, and its sentences labelled by the half of the
book that they stand in (0 for chapters I to VI), a label that is real but hard.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from bench.data.base import Corpus, Example, Split, block_split, register, without_duplicates

__all__: list[str] = []

PASSAGE = 1200  # characters at least in one passage of whole paragraphs
SHORTEST_SENTENCE = 20  # characters
RECIPE = "unwrapped, passages and sentences, split 70/30 by blocks, version 1"


def _content() -> tuple[Path, ...]:
    return (Path(__file__).with_name("alice.txt"),)


@lru_cache(maxsize=1)
def _chapters() -> tuple[tuple[str, ...], ...]:
    """The twelve chapters as paragraphs, hard line breaks joined."""
    text = _content()[0].read_text(encoding="ascii")
    chapters = re.split(r"\n\s+CHAPTER [IVX]+\s*\n", text)[1:]
    joined = ([re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", chapter)] for chapter in chapters)
    return tuple(tuple(p for p in paragraphs if p) for paragraphs in joined)


def _passages(split: Split) -> tuple[Example, ...]:
    out, held = [], ""
    for paragraph in (p for chapter in _chapters() for p in chapter):
        held = f"{held}\n{paragraph}".strip()
        if len(held) >= PASSAGE:
            out.append(Example(held))
            held = ""
    return block_split(out, split)


def _sentences(split: Split) -> tuple[Example, ...]:
    out = []
    for number, chapter in enumerate(_chapters()):
        for paragraph in chapter:
            for sentence in re.split(r"(?<=[.!?])\s+", paragraph):
                if len(sentence) >= SHORTEST_SENTENCE:
                    out.append(Example(sentence, int(number >= 6)))
    return block_split(without_duplicates(out), split)


register(Corpus("alice", "Alice's Adventures in Wonderland, passages", _passages, _content, RECIPE))
register(Corpus("alice-halves", "sentences of Alice, by half of the book", _sentences, _content, RECIPE))
