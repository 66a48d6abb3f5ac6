"""The chain of Deep Compression: relative indices, fillers, shared values, and the ratio that is reported."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import METHODS, QuantizedLinear, model_parts, quantize_model
from quant.core import from_config
from quant.formats.relative import Relative
from quant.methods.cluster import Cluster
from quant.methods.deep_compression import DeepCompression
from quant.methods.prune import Magnitude
from tests.quant.samples import gaussian, inputs


def stored(keep: torch.Tensor, gap_bits: int, coder: str | None = None) -> Relative:
    """Every kept weight has code 0, 1, 2, 0, 1, ... of the levels 1, 2, 3."""
    count = int(keep.sum())
    codes = (torch.arange(count) % 3).to(torch.uint8)
    return Relative.store(keep, codes, torch.tensor([[1.0, 2.0, 3.0]]), bits=2, gap_bits=gap_bits, coder=coder)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_relative_indices_are_lossless(data):
    gap_bits = data.draw(st.integers(1, 8))
    n, k = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 300))
    seed, share = data.draw(st.integers(0, 2**32)), data.draw(st.sampled_from([0.0, 0.003, 0.1, 0.6, 1.0]))
    keep = torch.from_numpy(np.random.default_rng(seed).random((n, k)) < share)
    want = torch.zeros(n, k)
    want[keep] = (torch.arange(int(keep.sum())) % 3 + 1).float()
    for coder in (None, "huffman", "ans"):
        q = stored(keep, gap_bits, coder)
        assert torch.equal(q.decode(), want)
        assert torch.equal(q.plain().decode(), want)


@pytest.mark.parametrize(
    ("gap_bits", "before", "entries"), [(4, 15, 1), (4, 16, 2), (4, 31, 2), (4, 32, 3), (5, 32, 2)]
)
def test_a_filler_stands_where_the_distance_does_not_fit(gap_bits, before, entries):
    keep = torch.zeros(1, before + 9, dtype=torch.bool)
    keep[0, before] = True
    assert stored(keep, gap_bits).entries == entries


@pytest.mark.parametrize("density", [0.5, 0.1, 0.03])
@pytest.mark.parametrize("gap_bits", [3, 4, 5])
def test_random_masks_need_as_many_fillers_as_the_closed_form_says(density, gap_bits):
    keep = torch.rand(1000, 1000, generator=torch.Generator().manual_seed(0)) < density
    kept = int(keep.sum())
    q = (1 - density) ** (1 << gap_bits)
    fillers = stored(keep, gap_bits).entries - kept
    mean, variance = q / (1 - q), q / (1 - q) ** 2  # the fillers of a weight are geometric too
    assert fillers == pytest.approx(kept * mean, abs=5 * math.sqrt(kept * variance) + 2e-3 * kept * mean + 1)


def test_what_is_kept_and_shared_is_what_pruning_and_clustering_say():
    w = gaussian(64, 256)
    q = DeepCompression(0.7, 15, "exact", coder="ans").quantize(w)
    pruned = Magnitude(0.7).quantize(w).kept()
    assert torch.equal(q.decode() != 0, pruned)
    shared = Cluster(15).quantize(w[pruned][None])
    assert torch.equal(q.decode()[pruned], shared.decode()[0])


def test_packed_huffman_and_numeral_systems_store_the_same_weight_in_ever_fewer_bytes():
    w = gaussian(256, 1024)
    packed = DeepCompression(0.7, 15, coder=None).quantize(w)
    by = {coder: packed.encoded(coder) for coder in ("huffman", "ans")}
    for q in by.values():
        assert torch.equal(q.decode(), packed.decode())
    assert by["ans"].nbytes < by["huffman"].nbytes < packed.nbytes
    again = DeepCompression(0.7, 15, coder="huffman").quantize(w)
    assert {n: t.tolist() for n, t in again.stored().items()} == {
        n: t.tolist() for n, t in by["huffman"].stored().items()
    }


def test_the_compression_ratio_is_that_of_the_stored_bytes():
    """Eight percent kept, 64 values, 5-bit gaps: the layer ip1 of LeNet-300-100, 32 x in the paper before Huffman.

    A Gaussian layer pruned at random places needs no fewer: 0.08 (5 + 6 bits) plus fillers are 0.97 bits, 33 x.
    """
    w = gaussian(300, 784)
    q = DeepCompression(0.92, 63, "linear", 5, None).quantize(w)
    ratio = 32 * w.numel() / (8 * q.nbytes)
    assert q.parts()["mask"] == math.ceil(q.entries * 5 / 8)
    assert ratio == pytest.approx(32 / q.bits_per_weight)
    q_filler = 0.92**32
    bits = 0.08 * (1 + q_filler / (1 - q_filler)) * 11
    assert ratio == pytest.approx(32 / bits, rel=0.02)
    smaller = q.encoded("huffman")
    assert 1.1 < q.nbytes / smaller.nbytes < 1.6  # the paper gains 1.25 (32 x to 40 x) on the network
    assert model_parts(torch.nn.Sequential(QuantizedLinear(smaller, None))) == smaller.parts()


@pytest.mark.parametrize("coder", [None, "ans"])
def test_a_centroid_s_gradient_is_the_sum_of_its_weights_and_pruned_weights_stay_zero(coder):
    method = DeepCompression(0.5, 15, coder=coder, tune=True)
    q = method.quantize(gaussian(24, 128))
    layer = QuantizedLinear(q, None, trainable=method.trainable)
    x, dy = gaussian(7, 128, seed=1), gaussian(7, 24, seed=2)
    layer(x).backward(dy)
    dw, codes = dy.T @ x, q.plain().unpacked()
    want = torch.stack([dw[codes == c + 1].sum() for c in range(15)])[None]
    levels = layer.get_parameter("levels")
    torch.testing.assert_close(levels.grad, want, rtol=1e-4, atol=1e-5)  # order of float32 sums
    with torch.no_grad():
        levels += 0.5
    assert torch.equal(layer.weight_qt.decode() == 0, codes == 0)


def test_the_whole_chain_prunes_shares_trains_the_centroids_and_codes_what_was_trained():
    """The coders store, to the bit and in fewer bytes than packed, the weight that its centroids have come to be."""
    n, k = 128, 512
    dense = torch.nn.Sequential(torch.nn.Linear(k, n))
    with torch.no_grad():
        dense[0].weight.copy_(gaussian(n, k))
        dense[0].bias.zero_()
    model = quantize_model(dense, METHODS["deep-compression-50-tuned"])
    layer = model[0]
    before = layer.weight_qt
    first = {name: t.clone() for name, t in before.stored().items()}
    start = before.decode()
    pruned, places = start == 0, before.plain().unpacked()
    assert int(pruned.sum()) == n * k // 2
    levels = layer.get_parameter("levels").requires_grad_()
    assert [name for name, p in layer.stored().items() if p.requires_grad] == ["levels"]
    x = inputs(256, k)
    target = 1.25 * dense(x).detach()  # a task that the centroids fit when each is larger by a quarter
    with torch.no_grad():
        by_hand = float((1.25 * model(x) - target).square().mean())
    optimizer = torch.optim.Adam([levels], lr=2e-3)
    losses = []
    for _ in range(30):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < by_hand + 0.1 * (losses[0] - by_hand)  # nine tenths of the way to where they are known to fit

    trained = layer.weight_qt
    assert isinstance(trained, Relative)
    want = trained.decode()
    assert torch.equal(want == 0, pruned)
    assert torch.equal(want, torch.cat([torch.zeros(1), levels.detach()[0]])[places.long()])
    assert float((want - start).abs().max()) > 2e-3  # the first step of Adam alone is as long as its rate
    assert all(torch.equal(t, first[name]) for name, t in trained.stored().items() if name != "levels")

    smaller = {coder: trained.encoded(coder) for coder in ("huffman", "ans")}
    for coder, q in smaller.items():
        assert torch.equal(q.decode(), want)
        assert torch.equal(q.levels, levels)
        for part in ("mask", "codes"):
            assert q.parts()[part] < trained.parts()[part], (coder, part)
        assert q.nbytes == sum(q.parts().values()) < trained.nbytes
        again = from_config(json.loads(json.dumps(q.config())), q.stored())
        assert torch.equal(again.decode(), want)
        coded = torch.nn.Sequential(QuantizedLinear(again, layer.bias))
        assert (coded(x) - target).square().mean().item() < losses[0]
        # what is stored says how far it lies from the entropy of its two kinds of symbols: a bit each at most
        assert 8 * (q.nbytes - q.parts()["levels"]) < entropy_of(trained) + 2 * trained.entries


def entropy_of(q: Relative) -> float:
    """Bits that the gaps and the codes take at least, each kind by itself."""
    bits = 0.0
    for symbols in (q.gaps, q.codes):
        counts = symbols.decode().long().flatten().bincount().double()
        counts = counts[counts > 0]
        bits -= float((counts * (counts / counts.sum()).log2()).sum())
    return bits


def test_only_the_tuned_method_trains():
    assert METHODS["deep-compression-50-tuned"].trainable == ("levels",)
    assert METHODS["deep-compression-50"].trainable == ()


@pytest.mark.parametrize("coder", [None, "huffman", "ans"])
def test_nothing_kept_is_a_weight_of_zeros(coder):
    q = DeepCompression(1.0, coder=coder).quantize(gaussian(5, 7))
    assert q.entries == 0
    assert torch.equal(q.decode(), torch.zeros(5, 7))
    assert q.encoded("ans") is q


def test_damaged_indices_are_refused():
    keep = torch.zeros(2, 8, dtype=torch.bool)
    keep[1, 7] = True
    q = stored(keep, 4)
    with pytest.raises(ValueError, match="the gaps reach weight 15 of 14"):
        Relative((2, 7), q.dtype, q.gaps, q.codes, q.levels, q.bits).decode()
    with pytest.raises(ValueError, match="both be there or both be absent"):
        Relative((2, 8), q.dtype, q.gaps, None, q.levels, q.bits)
    with pytest.raises(ValueError, match=r"levels must be \[1, 1 .. 3\]"):
        Relative((2, 8), q.dtype, q.gaps, q.codes, torch.ones(1, 4), q.bits)
