"""Texts: splits without leaks, samples without chance, batches without loss."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.data import CORPORA, Example, LikeLengths, Texts, block_split, evenly, fingerprint, windows_of
from bench.data.base import without_duplicates
from bench.data.wikipedia import plain_text
from bench.models import load
from tests.bench.assets import needs


def examples(n: int) -> list[Example]:
    return [Example(f"text {i} " + "x" * (i * 7 % 40), i % 2) for i in range(n)]


@given(st.lists(st.sampled_from([0, 1]), max_size=60))
def test_the_splits_are_leading_and_trailing_blocks_of_every_label(labels):
    pool = [Example(str(i), label) for i, label in enumerate(labels)]
    train, test = block_split(pool, "train"), block_split(pool, "test")
    assert sorted([*train, *test], key=lambda e: int(e.text)) == pool
    for label in (0, 1):
        first = [int(e.text) for e in train if e.label == label]
        last = [int(e.text) for e in test if e.label == label]
        assert len(first) == int(0.7 * (len(first) + len(last)))
        assert not first or not last or max(first) < min(last)


def test_a_text_that_comes_twice_is_kept_once():
    found = without_duplicates([Example("a", 0), Example("b", 1), Example("a", 1)])
    assert found == (Example("a", 0), Example("b", 1))


@given(st.integers(1, 200), st.data())
def test_an_even_sample_is_in_order_distinct_and_spread(n, data):
    k = data.draw(st.integers(1, n))
    found = evenly(range(n), k)
    assert len(set(found)) == k
    assert list(found) == sorted(found)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_sample_larger_than_the_pool_is_refused():
    with pytest.raises(ValueError, match="5 texts are wanted and 3 are there"):
        evenly("abc", 5)


def test_shuffled_batches_hold_every_text_once_and_follow_the_seed():
    lengths = [i * 13 % 47 for i in range(101)]
    sampler = LikeLengths(lengths, 4, seed=5)
    first, second = list(sampler), list(sampler)
    assert sorted(i for batch in first for i in batch) == list(range(101))
    assert first != second
    assert list(LikeLengths(lengths, 4, seed=5)) == first
    assert list(LikeLengths(lengths, 4, seed=6)) != first


def test_batches_of_like_length_pad_less_than_random_ones():
    lengths = torch.randint(5, 100, (512,), generator=torch.Generator().manual_seed(0)).tolist()
    padded = sum(len(b) * max(lengths[i] for i in b) for b in LikeLengths(lengths, 8, seed=0))
    order = torch.randperm(512, generator=torch.Generator().manual_seed(0)).tolist()
    random = sum(8 * max(lengths[i] for i in order[s : s + 8]) for s in range(0, 512, 8))
    assert padded < 0.8 * random


def test_batches_by_length_know_where_their_texts_come_from():
    texts = Texts(examples(23), load("tiny-encoder").tokenizer, 30)
    loader, order = texts.by_length(4)
    seen = [ids[mask.bool()].tolist() for b in loader for ids, mask in zip(b.input_ids, b.attention_mask, strict=True)]
    assert [len(ids) for ids in seen] == sorted(len(ids) for ids in seen)
    assert seen == [texts.rows[i][0] for i in order.tolist()]
    assert max(len(ids) for ids in seen) == 30


def test_windows_are_the_beginnings_of_their_texts():
    model = load("tiny-causal")
    pool = CORPORA["alice"].examples("test")
    windows = windows_of(pool, model.tokenizer, 5, 64)
    assert windows.tokens.shape == (5, 64)
    starts = {e.text.encode()[:64] for e in pool}
    assert all(model.tokenizer.decode(row).encode() in starts for row in windows.tokens)
    with pytest.raises(ValueError, match="9999 windows of 64 tokens"):
        windows_of(pool, model.tokenizer, 9999, 64)


def test_wiki_paragraphs_are_kept_whole():
    sentence = (
        "The '''river''' [[Thames|flows]] through [[London]]{{cite|{{x}}}}, past many towns, and on to the wide sea."
    )
    wanted = "The river flows through London, past many towns, and on to the wide sea."
    assert plain_text(f"{{|\n|table\n|}}\n{sentence} {sentence}\n* {'item ' * 30}\nshort") == f"{wanted} {wanted}"


def test_alice_is_the_whole_book():
    sides = [CORPORA["alice"].examples(split) for split in ("train", "test")]
    text = "\n".join(e.text for side in sides for e in side)
    assert "Alice was beginning to get very tired" in text
    assert "Cheshire" in text
    assert 130_000 < len(text) < 150_000
    halves = [e for split in ("train", "test") for e in CORPORA["alice-halves"].examples(split)]
    assert {e.label for e in halves} == {0, 1}
    assert len({e.text for e in halves}) == len(halves)


def test_an_unknown_corpus_is_named():
    assert len(fingerprint("alice")) == 64
    with pytest.raises(ValueError, match="unknown corpus 'alyce'"):
        fingerprint("alyce")


@needs("movie_reviews")
@pytest.mark.parametrize(("name", "total"), [("imdb", 24_903), ("rotten-tomatoes", 8_530)])
def test_reviews_are_balanced_and_no_text_is_on_both_sides(name, total):
    train, test = (CORPORA[name].examples(split) for split in ("train", "test"))
    assert len(train) + len(test) == total
    assert not {e.text for e in train} & {e.text for e in test}
    for side in (train, test):
        assert abs(sum(e.label for e in side) / len(side) - 0.5) < 0.01


@needs("gensim")
def test_wikipedia_is_held_out_prose():
    articles = CORPORA["wikipedia"].examples("test")
    assert len(articles) == 95
    text = "\n".join(e.text for e in articles)
    assert 2_400_000 < len(text) < 2_600_000
    # unbalanced brackets in the sources leave a few behind
    assert sum(text.count(mark) for mark in ("[[", "{{", "<ref")) < len(articles)
    with pytest.raises(ValueError, match="held out whole"):
        CORPORA["wikipedia"].examples("train")
