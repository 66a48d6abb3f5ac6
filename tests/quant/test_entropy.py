"""Entropy-coded sizes of whole tensors: closed forms, and what the coders really write."""

import numpy as np
import pytest
import torch

from quant.core import METHODS
from quant.entropy import entropy, entropy_bits, huffman_bits, huffman_bytes
from quant.huffman import CHUNK, encode
from quant.methods.prune import Magnitude
from quant.methods.uniform import Uniform
from tests.quant.samples import quantize


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
    p = np.array([8, 4, 2, 1, 1]) / 16
    codes = torch.from_numpy(np.random.default_rng(0).choice(5, 50_000, p=p).astype(np.uint8))
    stream = encode(codes.numpy(), 3)
    assert huffman_bytes(codes, 3) == stream.data.nbytes + stream.starts.nbytes + stream.table.nbytes
    assert stream.starts.nbytes == 4 * -(-50_000 // CHUNK)


def test_the_entropy_of_coded_codes_is_that_of_the_packed_ones():
    w = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    for coded, packed in (("kmeans-4bit-tensor-ans", "kmeans-4bit-tensor"), ("nf4-g64-dq-ans", "nf4-g64-dq")):
        got, want = (entropy_bits(METHODS[m].quantize(w)) for m in (coded, packed))
        assert got == want


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_has_an_entropy_not_above_its_bits(method):
    stored = quantize(method, torch.randn(9, 72, generator=torch.Generator().manual_seed(0)))
    assert 0 < entropy_bits(stored) <= stored.bits_per_weight + 1e-9
