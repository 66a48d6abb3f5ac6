"""The Huffman coder is lossless and within one bit of the entropy; entropy-coded sizes of whole tensors."""

import numpy as np
import pytest
import torch

from quant.core import METHODS
from quant.entropy import (
    CHUNK,
    LONGEST,
    code_lengths,
    decode,
    encode,
    entropy,
    entropy_bits,
    huffman_bits,
    huffman_bytes,
)
from quant.methods.prune import Magnitude
from quant.methods.uniform import Uniform


def draw(p: list[float], n: int) -> np.ndarray:
    return np.random.default_rng(0).choice(len(p), n, p=np.array(p) / sum(p)).astype(np.uint8)


@pytest.mark.parametrize("n", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 300_001])
@pytest.mark.parametrize("p", [[1.0], [9, 1], [1] * 16, [2.0**-i for i in range(16)], list(range(1, 257))])
def test_lossless_and_within_one_bit_of_the_entropy(n, p):
    symbols = draw(p, n)
    stream = encode(symbols, 8)
    assert np.array_equal(decode(stream), symbols)
    counts = np.bincount(symbols, minlength=256)
    mean = (code_lengths(counts) * counts).sum() / n
    h = entropy(torch.from_numpy(symbols))
    assert h - 1e-9 <= mean < h + 1
    assert len(stream.data) == -(-round(mean * n) // 8)


def test_words_are_bounded_for_any_counts():
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = code_lengths(np.array(fibonacci)).astype(float)
    assert lengths.max() <= LONGEST
    assert (2.0**-lengths).sum() <= 1  # Kraft: a prefix code


def test_lone_symbols_and_symbols_too_large():
    assert encode(np.full(5000, 7, np.uint8), 4).nbytes == 16  # only the table
    assert np.array_equal(decode(encode(np.full(5000, 7, np.uint8), 4)), np.full(5000, 7, np.uint8))
    assert decode(encode(np.zeros(0, np.uint8), 4)).size == 0
    with pytest.raises(ValueError, match="16 does not fit"):
        encode(np.array([16], np.uint8), 4)


def test_lloyd_max_and_nf4_code_entropy():
    w = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    kmeans, nf4 = METHODS["kmeans-4bit-tensor"].quantize(w), METHODS["nf4-g64"].quantize(w)
    assert entropy_bits(kmeans) == pytest.approx(3.7653 + 16 * 16 / w.numel(), abs=5e-3)  # 1 M samples
    assert entropy_bits(nf4) == pytest.approx(3.884 + 32 / 64, abs=2e-3)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_pruned_weights_count_the_entropy_of_their_mask(share):
    w = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    stored = Magnitude(share, values=Uniform(4, 64)).quantize(w)
    mask = entropy(stored.kept().to(torch.uint8))
    assert mask == pytest.approx(-share * np.log2(share) - (1 - share) * np.log2(1 - share), abs=1e-4)
    assert entropy_bits(stored) == pytest.approx(mask + (1 - share) * entropy_bits(stored.values), abs=1e-3)
    assert entropy_bits(stored) < huffman_bits(stored) < stored.bits_per_weight


def test_huffman_bytes_are_those_of_the_stream():
    codes = torch.from_numpy(draw([8, 4, 2, 1, 1], 50_000))
    stream = encode(codes.numpy(), 3)
    assert huffman_bytes(codes, 3) == stream.data.nbytes + stream.starts.nbytes + stream.lengths.nbytes
    assert stream.starts.nbytes == 4 * -(-50_000 // CHUNK)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_has_an_entropy_not_above_its_bits(method):
    stored = METHODS[method].quantize(torch.randn(9, 70, generator=torch.Generator().manual_seed(0)))
    assert 0 < entropy_bits(stored) <= stored.bits_per_weight + 1e-9
