"""Weights whose codes are in an entropy code: the same weights in fewer bytes, decoded once by whoever multiplies."""

from __future__ import annotations

import dataclasses
import math
from unittest.mock import patch

import pytest
import torch

from quant import METHODS, QuantizedLinear, UnsupportedError, ans
from quant.entropy import entropy
from quant.formats import BitMask, Scaled
from quant.formats.coded import Coded, CodedCodebook, Symbols, coded, plain
from quant.methods.cluster import Cluster
from quant.methods.coded import EntropyCoded
from quant.methods.deep_compression import DeepCompression
from quant.methods.ecsq import EntropyCodedUniform
from quant.methods.kmeans import KMeans
from quant.methods.prune import Magnitude
from tests.quant.samples import gaussian

W = torch.randn(512, 2048, generator=torch.Generator().manual_seed(0))  # a million weights: moments to 0.2 %
CODED = ["kmeans-4bit-tensor-ans", "nf4-g64-dq-ans", "ecsq-3bit", "deep-compression-50"]


def mse(quantized) -> float:
    return float((quantized.decode() - W).double().square().mean())


@pytest.mark.parametrize("coder", ["huffman", "ans"])
@pytest.mark.parametrize("inner", ["kmeans-4bit-tensor", "kmeans-3bit-row", "nf4-g64-dq", "fp4-g64", "cluster-256"])
def test_coding_changes_no_weight_and_no_configuration(inner, coder):
    packed = METHODS[inner].quantize(W[:64])
    stored = coded(packed, coder)
    assert torch.equal(stored.decode(), packed.decode())
    assert plain(stored).config() == packed.config()
    assert {n: t.tolist() for n, t in plain(stored).stored().items()} == {
        n: t.tolist() for n, t in packed.stored().items()
    }
    assert stored.parts()["codes"] == stored.nbytes - packed.nbytes + packed.parts()["codes"]


def test_the_coded_size_is_the_entropy_of_the_codes():
    nf4 = METHODS["nf4-g64-dq-ans"].quantize(W)
    assert nf4.bits_per_weight == pytest.approx(3.884 + 0.127, abs=0.02)  # the lanes take 0.016 bits
    assert nf4.bits_per_weight > 3.884 + 0.127
    lloyd_max = METHODS["kmeans-4bit-tensor-ans"].quantize(W)
    assert 3.7653 - 0.003 < lloyd_max.bits_per_weight < 3.7653 + 0.02


@pytest.mark.parametrize("method", CODED)
@pytest.mark.parametrize("engine", ["auto", "tiled"])
def test_a_stream_is_read_once_and_what_is_kept_is_counted(method, engine):
    q = METHODS[method].quantize(gaussian(24, 128))
    layer = QuantizedLinear(q, None, engine)
    assert layer.cache_nbytes == 0
    x = gaussian(5, 128, seed=1).requires_grad_()
    layer(x).sum().backward()
    packed = plain(q)
    assert layer.cache_nbytes >= packed.parts()["codes"] > 0
    with patch.object(Symbols, "symbols", side_effect=AssertionError("the stream was read again")):
        layer(x).sum().backward()
    torch.testing.assert_close(layer(x), x @ q.decode().T)


def test_coded_weights_inside_others_are_read_once_too():
    inner = METHODS["ecsq-3bit"].quantize(gaussian(24, 128))
    around = Scaled((24, 128), torch.float32, inner, torch.ones(1, 128).half())
    pruned = Magnitude(0.5, values=EntropyCodedUniform(3.0)).quantize(gaussian(24, 128))
    assert isinstance(pruned, BitMask)
    for q in (around, pruned):
        layer = QuantizedLinear(q, None)
        layer(gaussian(5, 128, seed=1))
        assert layer.cache_nbytes > 0
        with patch.object(Symbols, "symbols", side_effect=AssertionError("the stream was read again")):
            layer(gaussian(5, 128, seed=1))


@dataclasses.dataclass(frozen=True)
class Narrower(KMeans):
    """One bit less in every layer but the first."""

    def for_layers(self, weights, calibration=None):
        return {name: KMeans(self.bits - (i > 0)) for i, name in enumerate(weights)}


def test_the_coder_is_the_one_asked_for_and_the_methods_those_fitted_to_each_layer():
    w = gaussian(24, 128)
    assert {c: EntropyCoded(KMeans(4), c).quantize(w).nbytes for c in ("ans", "huffman")} == {
        c: coded(KMeans(4).quantize(w), c).nbytes for c in ("ans", "huffman")
    }
    fitted = EntropyCoded(Narrower(4), "huffman").for_layers({"a": w, "b": w})
    assert [(m.inner.bits, m.coder) for m in fitted.values()] == [(4, "huffman"), (3, "huffman")]


def test_formats_without_a_codebook_are_refused():
    with pytest.raises(UnsupportedError, match="'affine' has no codebook"):
        EntropyCoded(METHODS["uniform-int4-g64"]).quantize(W[:8])


def test_settings_are_checked():
    for make in (lambda: EntropyCoded(KMeans(), "zip"), lambda: EntropyCodedUniform(4, "zip")):
        with pytest.raises(ValueError, match="coder must be one of huffman, ans, got 'zip'"):
            make()
    for bits in (0, 9.0):
        with pytest.raises(ValueError, match="bits must be above 0"):
            EntropyCodedUniform(bits)
    for bad in ({"clusters": 256}, {"gap_bits": 0}, {"sparsity": 1.5}, {"init": "random"}, {"coder": "zip"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DeepCompression(**bad)


def test_damaged_formats_are_refused():
    q = METHODS["ecsq-3bit"].quantize(gaussian(24, 128))
    assert isinstance(q, CodedCodebook)
    with pytest.raises(ValueError, match=r"data must be 1-D of torch\.uint8"):
        dataclasses.replace(q.codes, data=q.codes.data.int())
    with pytest.raises(ValueError, match="does not fit in 2 bits"):
        dataclasses.replace(q.codes, bits=2)
    with pytest.raises(ValueError, match=r"codes must be symbols \[24, 64\]"):
        dataclasses.replace(q, shape=(24, 64))
    with pytest.raises(ValueError, match="damaged"):
        dataclasses.replace(q.codes, table=q.codes.table + 1).symbols()


# D at these rates with centroids: Gish and Pierce 1968, recomputed; the tables and lanes take 0.013 of the bits
ECSQ = [
    (1, 0.348339, 2.42162),
    (2, 0.088941, 1.08245),
    (3, 0.022239, 0.52243),
    (4, 0.005560, 0.25902),
    (5, 0.001390, 0.12924),
]


@pytest.mark.parametrize(("bits", "distortion"), [row[:2] for row in ECSQ])
def test_entropy_coded_uniform_reaches_its_distortion(bits, distortion):
    q = EntropyCodedUniform(bits).quantize(W)
    assert bits - 0.005 < q.bits_per_weight <= bits
    side = 4.0 ** (bits - q.bits_per_weight + 0.0145)
    assert distortion * 0.997 < mse(q) < distortion * side * 1.003  # a million weights
    gap, least = 10 * math.log10(mse(q) * 4**q.bits_per_weight), 1.441 if bits == 1 else 1.53
    assert least - 0.02 < gap < least + 0.1


@pytest.mark.parametrize(("bits", "distortion", "step"), ECSQ)
def test_entropy_coded_uniform_has_the_step_and_error_of_its_entropy(bits, distortion, step):
    """The stream without its tables and lanes; what the entropy misses the rate by moves step and error as known.

    A million weights: the entropy has a standard error of .001 bits (that of x**2 / 2, in bits), which is 0.07 % of the
    step and 0.14 % of the error, the error one of 0.1 % besides. Four standard errors are allowed.
    """
    q = EntropyCodedUniform(bits + 0.0145).quantize(W)
    rate = entropy(q.codes.symbols())
    assert rate == pytest.approx(bits, abs=0.005)
    assert float(q.scale) == pytest.approx(step * 2 ** (bits - rate), rel=3e-3)
    assert mse(q) == pytest.approx(distortion * 4 ** (bits - rate), rel=7e-3)


def test_entropy_coded_uniform_is_two_decibels_below_lloyd_max_at_equal_bits():
    gain = 10 * math.log10(mse(KMeans(4, 0).quantize(W)) / mse(EntropyCodedUniform(4.0).quantize(W)))
    assert 2.33 - 0.1 < gain < 2.33 + 0.02  # 2.33 without tables and lanes, which cost 0.08


@pytest.mark.parametrize("coder", ["huffman", "ans"])
def test_entropy_coded_uniform_stays_within_its_bits_for_any_distribution(coder):
    generator = torch.Generator().manual_seed(1)
    heavy = torch.randn(64, 512, generator=generator) / torch.rand(64, 512, generator=generator).clamp(min=1e-3)
    for w in (heavy, heavy.sign(), heavy * (heavy.abs() < 0.5), torch.rand(64, 512, generator=generator) + 3):
        q = EntropyCodedUniform(3.0, coder).quantize(w)
        assert q.bits_per_weight <= 3.0
        assert q.levels.shape[1] <= 256
        assert float((q.decode() - w).norm()) < float(w.norm())


def test_the_steps_of_a_decoder_do_not_grow_with_the_weight(monkeypatch):
    """Counted, not timed: of ten million weights all lanes advance side by side, a lane's symbols in turn."""
    steps = []
    flatnonzero = ans.np.flatnonzero
    monkeypatch.setattr(ans.np, "flatnonzero", lambda x: (steps.append(len(x)), flatnonzero(x))[1])
    ans.decode(ans.encode((W > 0).to(torch.uint8).numpy(), 1))
    assert len(steps) == ans.LANE


def test_every_coded_format_is_a_codebook_once_decoded():
    for method in CODED:
        packed = plain(METHODS[method].quantize(gaussian(24, 128)))
        assert not [q for q in (packed, *packed.fields().values()) if isinstance(q, Coded)]


def test_clusters_keep_their_trainable_levels_when_coded():
    method = EntropyCoded(Cluster(16, tune=True))
    layer = QuantizedLinear(method.quantize(gaussian(24, 128)), None, trainable=method.trainable)
    layer(gaussian(5, 128, seed=1)).sum().backward()
    assert layer.get_parameter("levels").grad.abs().sum() > 0
