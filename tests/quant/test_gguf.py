"""GGUF block formats: the library's own bytes decode to the same values, and the published errors on a Gaussian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from quant import METHODS, Quantizer
from quant.formats import Codebook, Shifted
from quant.grouping import expand
from quant.methods.gguf import IQ4_NL_LEVELS, IQ4NL, Q4K, Q40, make_qkx2
from quant.methods.search import Searched
from tests.quant.samples import gaussian, inputs

library = pytest.importorskip("gguf.quants", reason="the package gguf is not installed")
N, K = 16, 1024


def nibbles(codes: Tensor, block: int) -> np.ndarray:
    """Codes [blocks, size] as the library packs them: in runs of `block`, first half low, second half high."""
    halves = codes.numpy().reshape(len(codes), -1, 2, block // 2)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(len(codes), -1)


def halves(scale: Tensor) -> np.ndarray:
    return np.ascontiguousarray(scale.reshape(-1, 1).numpy()).view(np.uint8)


def test_q4_0_is_the_librarys_bit_for_bit() -> None:
    w = gaussian(N, K)
    q = Q40().quantize(w)
    stored = np.concatenate([halves(q.scale), nibbles(q.unpacked().reshape(-1, 32), 32)], 1).reshape(N, -1)
    theirs = library.quantize(w.numpy(), library.GGMLQuantizationType.Q4_0)
    assert np.array_equal(stored, theirs)
    assert np.array_equal(q.decode().numpy(), library.dequantize(theirs, library.GGMLQuantizationType.Q4_0))


def test_iq4_nl_decodes_as_the_library_does() -> None:
    q = METHODS["gguf-iq4-nl"].quantize(gaussian(N, K))
    assert tuple(IQ4_NL_LEVELS) == library.IQ4_NL.kvalues
    stored = np.concatenate([halves(q.scale), nibbles(q.unpacked().reshape(-1, 32), 32)], 1).reshape(N, -1)
    assert np.array_equal(q.decode().numpy(), library.dequantize(stored, library.GGMLQuantizationType.IQ4_NL))


def six_bits(scale: Tensor, minimum: Tensor) -> np.ndarray:
    """Two times 8 codes of 6 bits in 12 bytes: the low 6 bits of four each, then nibbles of the rest and their tops."""
    s, m = scale.reshape(-1, 8).numpy(), minimum.reshape(-1, 8).numpy()
    first = s[:, :4] | ((s[:, 4:] >> 4) << 6)
    second = m[:, :4] | ((m[:, 4:] >> 4) << 6)
    return np.concatenate([first, second, (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)], 1).astype(np.uint8)


def test_q4_k_decodes_as_the_library_does() -> None:
    q = Q4K().quantize(gaussian(N, K))
    assert isinstance(q, Shifted)
    assert isinstance(q.inner, Codebook)
    scale, minimum = q.inner.scale, q.minimum
    assert isinstance(scale, Codebook)
    assert isinstance(minimum, Codebook)
    codes = nibbles(q.inner.unpacked().reshape(-1, 256), 64)
    stored = [halves(scale.scale), halves(minimum.scale), six_bits(scale.unpacked(), minimum.unpacked()), codes]
    theirs = library.dequantize(np.concatenate(stored, 1).reshape(N, -1), library.GGMLQuantizationType.Q4_K)
    assert np.array_equal(q.decode().numpy(), theirs)


@pytest.mark.parametrize("name", ["gguf-q4-0", "gguf-q4-k", "gguf-iq4-nl"])
def test_every_format_takes_four_and_a_half_bits(name: str) -> None:
    q = METHODS[name].quantize(gaussian(N, K))
    assert q.bits_per_weight == 4.5
    assert set(q.parts()) <= {"codes", "scales", "zeros", "second_level", "constants"}


# 2**20 weights in 2**15 blocks, whose errors spread by half their mean: within 0.3 % (one sigma)
@pytest.mark.parametrize(
    ("method", "published"), [(Q40(), 0.007377), (IQ4NL(), 0.006391), (Searched(IQ4NL()), 0.005533)], ids=str
)
def test_published_errors_on_a_gaussian(method: Quantizer, published: float) -> None:
    w = torch.randn(256, 4096, generator=torch.Generator().manual_seed(0))
    assert float((method.quantize(w).decode() - w).square().mean()) == pytest.approx(published, rel=0.01)


def plain_search(x: list[float]) -> tuple[float, float]:
    """One group by the loops of the description: sums in double precision, codes in single, where halves abound."""
    rms = (sum(v * v for v in x) / len(x)) ** 0.5
    weigh = [rms + abs(v) for v in x]
    low, high = min(0.0, *x), max(x)
    best = (float("inf"), 0.0, 0.0)
    for reach in [None, *(14 + 0.1 * i for i in range(21))]:
        per = np.float32(15 if reach is None else reach) * (
            np.float32(1) / np.float32(np.float32(high) - np.float32(low))
        )
        code = [min(15, max(0, round(float((np.float32(v) - np.float32(low)) * per)))) for v in x]
        if reach is None:
            s, m = (high - low) / 15, low
        else:
            a = np.array([[c, 1.0] for c in code])
            root = np.sqrt(np.array(weigh))[:, None]
            s, m = np.linalg.lstsq(a * root, np.array(x) * root[:, 0], rcond=None)[0]
            if m > 0:
                m = 0.0
                s = sum(v * c * w for v, c, w in zip(x, code, weigh, strict=True)) / sum(
                    c * c * w for c, w in zip(code, weigh, strict=True)
                )
        error = sum(w * (s * c + m - v) ** 2 for v, c, w in zip(x, code, weigh, strict=True))
        best = min(best, (error, float(s), float(m)))
    return best[1], -best[2]


def test_the_search_of_q4_k_is_its_description() -> None:
    x = torch.cat([gaussian(24, 32), gaussian(8, 32, 1).abs()])
    scale, minimum = make_qkx2(x)
    want = torch.tensor([plain_search(row) for row in x.double().tolist()])
    torch.testing.assert_close(scale, want[:, 0], rtol=1e-4, atol=0)
    # two equations in single precision: to 1e-5 of the weights, which are up to 0.2
    torch.testing.assert_close(minimum, want[:, 1], rtol=1e-4, atol=2e-6)
    assert (minimum[24:] == 0).any()


def test_minima_are_subtracted_beside_the_product_and_in_its_gradient() -> None:
    q = Q4K().quantize(gaussian(N, 300) + 0.02)  # 300: a short group, and a short block
    assert isinstance(q, Shifted)
    x, dy = inputs(5, 300), gaussian(5, N, 2)
    shift = expand(q.minimum.decode(), q.shape, 32)
    assert float(shift.abs().max()) > 0
    torch.testing.assert_close(q.beside(x), -(x @ shift.T), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(q.beside_transposed(dy), -(dy @ shift), rtol=1e-4, atol=1e-6)
    assert float((q.decode() - gaussian(N, 300) - 0.02).norm() / (gaussian(N, 300) + 0.02).norm()) < 0.08


def test_the_largest_weight_of_a_block_is_kept_on_its_own_side() -> None:
    w = gaussian(4, 64)
    w[0, 5], w[1, 5] = 1.0, -1.0
    decoded = Q40().quantize(w).decode()
    assert decoded[0, 5] == 1.0
    assert decoded[1, 5] == -1.0
