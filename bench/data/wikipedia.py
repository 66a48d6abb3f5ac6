"""English Wikipedia articles, about 2.5 million characters of prose, from the test data of the gensim package.

The package is located, not imported. Its dump holds wiki markup; what is kept are the paragraphs of running text of
80 characters or more, without templates, tables, references, lists, headings and file links. Nothing is trained on
them: they are held out whole. The text is CC BY-SA and stays in the package.
"""

from __future__ import annotations

import bz2
import html
import re
from functools import lru_cache
from pathlib import Path

from bench.data.base import Corpus, Example, Split, register
from bench.models.base import ModelError, package_folder

__all__ = ["plain_text"]

SHORTEST_ARTICLE = 1000  # characters; below are stubs
SHORTEST_PARAGRAPH = 80  # characters; below are captions and left-overs of lists
RECIPE = "articles of the main space, markup removed, version 1"

ELEMENTS = re.compile(r"<(ref|math|gallery|timeline|source|table)\b[^>/]*>.*?</\1>", re.S | re.I)
TAGS = re.compile(r"<!--.*?-->|<[^>]+>", re.S)
TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
TABLE = re.compile(r"\{\|.*?\n\|\}", re.S)
NAMESPACED = re.compile(r"\[\[(?:[A-Za-z][a-z\-]{1,11}):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]")
LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]")
OUTSIDE_LINK = re.compile(r"\[https?://\S+\s?([^\]]*)\]")


def plain_text(markup: str) -> str:
    """The prose of an article's wiki markup, paragraphs joined by blank lines."""
    text = TAGS.sub("", ELEMENTS.sub("", html.unescape(markup)))
    text = _until_still(TEMPLATE, text)  # templates nest: the innermost goes first
    text = _until_still(NAMESPACED, TABLE.sub("", text))
    text = OUTSIDE_LINK.sub(r"\1", LINK.sub(r"\1", text))
    text = re.sub(r"'{2,}", "", text)
    lines = (line.strip() for line in text.split("\n"))
    prose = (line for line in lines if len(line) >= SHORTEST_PARAGRAPH and line[0] not in "*#:;|!{}=")
    return "\n\n".join(re.sub(r"\s+", " ", line.replace("()", "")) for line in prose)


def _until_still(pattern: re.Pattern[str], text: str) -> str:
    changes = 1
    while changes:
        text, changes = pattern.subn("", text)
    return text


def _content() -> tuple[Path, ...]:
    folder = package_folder("gensim") / "test" / "test_data"
    found = sorted(folder.glob("enwiki-latest-pages-articles1*shortened.bz2"))
    if not found:
        raise ModelError("the Wikipedia extract is missing from the installed gensim; run `make setup` for 4.4.0")
    return (found[0],)


@lru_cache(maxsize=1)
def _articles() -> tuple[Example, ...]:
    with bz2.open(_content()[0], "rt", encoding="utf-8") as file:
        dump = file.read()
    out = []
    for page in re.findall(r"<page>.*?</page>", dump, flags=re.S):
        body = re.search(r"<text[^>]*>(.*?)</text>", page, flags=re.S)
        if body is None or re.search(r"<ns>(?!0)", page) or body.group(1).lstrip().lower().startswith("#redirect"):
            continue
        text = plain_text(html.unescape(body.group(1)))
        if len(text) >= SHORTEST_ARTICLE:
            out.append(Example(text))
    return tuple(out)


def _examples(split: Split) -> tuple[Example, ...]:
    if split != "test":
        raise ValueError("Wikipedia is held out whole: it has no train pool")
    return _articles()


register(Corpus("wikipedia", "English Wikipedia articles, held out", _examples, _content, RECIPE))
