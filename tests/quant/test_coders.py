"""Entropy coders: lossless on any symbols, and as short as their frequencies allow."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import ans, huffman
from quant.entropy import entropy
from quant.formats.coded import CODERS

coders = pytest.mark.parametrize("coder", sorted(CODERS))
SHAPES = [[1.0], [9, 1], [1] * 16, [2.0**-i for i in range(16)], list(range(1, 257))]
LENGTHS = [1, 2, huffman.CHUNK - 1, huffman.CHUNK, huffman.CHUNK + 1, 2 * ans.LANE + 1, 300_001]


def draw(p: list[float], n: int) -> np.ndarray:
    return np.random.default_rng(0).choice(len(p), n, p=np.array(p) / sum(p)).astype(np.uint8)


def h(symbols: np.ndarray) -> float:
    return entropy(torch.from_numpy(symbols))


@coders
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_lossless_on_any_symbols(coder, data):
    values = data.draw(st.lists(st.integers(0, 255), max_size=60))
    repeats = data.draw(st.integers(1, 120))  # a skewed stream of several lanes and chunks
    symbols = np.array(values * repeats + values[:1] * repeats * 20, np.uint8)
    stream = CODERS[coder].encode(symbols, 8)
    assert np.array_equal(CODERS[coder].decode(stream), symbols)
    assert stream.count == len(symbols)


@coders
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("p", SHAPES)
def test_lossless_for_every_shape_and_length(coder, n, p):
    symbols = draw(p, n)
    assert np.array_equal(CODERS[coder].decode(CODERS[coder].encode(symbols, 8)), symbols)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("p", SHAPES)
def test_huffman_words_are_within_one_bit_of_the_entropy(n, p):
    symbols = draw(p, n)
    counts = np.bincount(symbols, minlength=256)
    mean = (huffman.code_lengths(counts) * counts).sum() / n
    assert h(symbols) - 1e-9 <= mean < h(symbols) + 1
    assert len(huffman.encode(symbols, 8).data) == -(-round(mean * n) // 8)


def best_mean(p: list[int]) -> Fraction:
    """The least mean length of any binary prefix code: over all lengths that Kraft's inequality allows."""
    longest = max(1, len(p) - 1)
    allowed = (
        lengths
        for lengths in itertools.product(range(1, longest + 1), repeat=len(p))
        if sum(Fraction(1, 2**length) for length in lengths) <= 1
    )
    return min(Fraction(sum(c * length for c, length in zip(p, lengths, strict=True)), sum(p)) for lengths in allowed)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=5))
def test_no_prefix_code_is_shorter_than_huffman_s(counts):
    lengths = huffman.code_lengths(np.array(counts))
    mean = Fraction(sum(c * int(length) for c, length in zip(counts, lengths, strict=True)), sum(counts))
    assert mean == best_mean(counts)


@pytest.mark.parametrize("p", SHAPES[1:])
def test_numeral_systems_are_within_one_percent_of_the_entropy(p):
    symbols = draw(p, 1_000_000)
    stream = ans.encode(symbols, 8)
    # 32 bits for 2048 symbols are 0.016 bits, of which the state holds some
    assert 8 * stream.data.nbytes <= h(symbols) * len(symbols) * 1.003
    assert 8 * (stream.data.nbytes + stream.starts.nbytes) <= (h(symbols) * 1.003 + 0.016) * len(symbols)
    if h(symbols) > 1.6:
        assert 8 * (stream.data.nbytes + stream.starts.nbytes) <= 1.01 * h(symbols) * len(symbols)
    assert 8 * stream.nbytes > h(symbols) * len(symbols)


def test_numeral_systems_beat_huffman_where_a_symbol_is_worth_less_than_a_bit():
    symbols = draw([19, 1], 200_000)  # 0.286 bits, a word has one at least
    assert ans.encode(symbols, 1).nbytes < 0.33 * huffman.encode(symbols, 1).nbytes


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=256))
def test_frequencies_sum_to_their_total_and_none_that_occurs_is_zero(counts):
    f = ans.frequencies(np.array(counts))
    assert f.sum() == (1 << ans.PRECISION if any(counts) else 0)
    assert ((f > 0) == (np.array(counts) > 0)).all()


def test_leftover_frequency_goes_where_it_costs_least():
    counts = np.array([1, 1, 1, 10**7])
    assert ans.frequencies(counts).tolist() == [1, 1, 1, (1 << ans.PRECISION) - 3]


def test_words_are_bounded_for_any_counts():
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman.code_lengths(np.array(fibonacci)).astype(float)
    assert lengths.max() <= huffman.LONGEST
    assert (2.0**-lengths).sum() <= 1  # Kraft: a prefix code


@coders
def test_a_lone_symbol_takes_its_table_and_nothing_else(coder):
    symbols = np.full(5000, 7, np.uint8)
    stream = CODERS[coder].encode(symbols, 4)
    assert stream.data.nbytes == 0
    assert stream.nbytes - stream.starts.nbytes == 16 * stream.table.itemsize
    assert np.array_equal(CODERS[coder].decode(stream), symbols)
    assert CODERS[coder].decode(CODERS[coder].encode(np.zeros(0, np.uint8), 4)).size == 0


@coders
def test_symbols_too_large_are_refused(coder):
    with pytest.raises(ValueError, match="16 does not fit in 4 bits"):
        CODERS[coder].encode(np.array([16], np.uint8), 4)


@coders
def test_a_damaged_stream_is_refused_or_decodes_to_as_many_symbols(coder):
    symbols = draw([5, 3, 2, 1], 20_000)
    stream = CODERS[coder].encode(symbols, 2)
    outcomes = set()
    for at in range(0, len(stream.data), 97):
        data = stream.data.copy()
        data[at] ^= 0x55
        try:
            outcome = str(len(CODERS[coder].decode(type(stream)(data, stream.starts, stream.table, stream.count))))
        except ValueError as error:
            outcome = str(error)
        outcomes.add(outcome)
    assert any("damaged" in outcome for outcome in outcomes)
    assert all("damaged" in outcome or outcome == "20000" for outcome in outcomes)
