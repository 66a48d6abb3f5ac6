"""Errors against closed forms and the known rates and distortions of normal weights."""

import json
import math

import pytest
import torch

from bench.measure.histogram import BINS, histogram, levels_of
from bench.measure.weights import weight_errors
from kernels.packing import pack
from quant import METHODS
from quant.formats import Affine, Codebook, Dense, Reshaped
from tests.quant.samples import quantize

# Lloyd-Max levels of N(0, 1), 16 of them; MSE 0.0095010080 (Max 1960, IRE Trans. Inf. Theory 6:7, recomputed)
LLOYD_MAX = [0.12839503, 0.3880483, 0.65675912, 0.94234046, 1.2562312, 1.6180464, 2.0690172, 2.7325896]


def normal(n=1024, k=1024, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def lloyd_max(w):
    levels = torch.tensor([-v for v in reversed(LLOYD_MAX)] + LLOYD_MAX)
    codes = torch.bucketize(w, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return Codebook(tuple(w.shape), torch.float32, pack(codes, 4), levels[None], None, None, 4, "tensor", 0)


def errors(w, method, **options):
    return weight_errors([("layer", w, METHODS[method].quantize(w))], **options)


# MSE and bits from which gap = 10 log10(MSE 4**bits); a million weights give the MSE to 0.3 %, that is 0.013 dB
@pytest.mark.parametrize(
    ("method", "mse", "bits", "gap"),
    [
        ("nf4-g64", 0.008453, 4.5, 6.36),
        ("nf4-g64-dq", 0.008455, 4.126953, 4.12),
        ("nf4-g128", 0.009136, 4.25, 5.20),
        ("uniform-int4-float-zero-g64", 0.008030, 4.5, 6.14),
        ("uniform-int4-g64", 0.011576, 4.25, 6.22),
    ],
)
def test_gap_of_a_method_on_normal_weights(method, mse, bits, gap):
    out = errors(normal(), method)
    assert METHODS[method].quantize(normal()).bits_per_weight == pytest.approx(bits, abs=1e-4)
    assert out["relative_error"] ** 2 == pytest.approx(mse, rel=0.006)
    assert out["gap_db"] == pytest.approx(gap, abs=0.03)


def test_gap_of_lloyd_max_with_sixteen_levels_is_386_hundredths():
    w = normal()
    out = weight_errors([("layer", w, lloyd_max(w))])
    assert out["relative_error"] ** 2 == pytest.approx(0.0095010080, rel=0.005)
    assert out["gap_db"] == pytest.approx(3.86, abs=0.03)


@pytest.mark.parametrize("size", [1e-22, 1e-3, 1.0, 1e25])
def test_figures_do_not_depend_on_the_unit_of_the_weights(size):
    w = normal(64, 128)
    q = Dense((64, 128), torch.float32, (w * 1.1).mul(size))
    out = weight_errors([("layer", w * size, q)])
    assert out["relative_error"] == pytest.approx(0.1, rel=1e-4)
    assert out["sqnr_db"] == pytest.approx(20, abs=1e-3)
    assert out["gap_db"] == pytest.approx(10 * math.log10(0.01 * 4.0**32), abs=1e-3)


def test_layers_are_pooled_by_energy_each_against_its_own_bound():
    # 64 weights of 2 stored in 32 bits, off by 0.2 each; 128 weights of 1 stored in 16 bits, off by 0.5 each
    a, b = torch.full((8, 8), 2.0), torch.full((8, 16), 1.0)
    qa = Dense((8, 8), torch.float32, a + 0.2)
    qb = Dense((8, 16), torch.float32, (b + 0.5).bfloat16())
    out = weight_errors([("a", a, qa), ("b", b, qb)])
    signal, noise = 64 * 4 + 128, 64 * 0.04 + 128 * 0.25
    assert out["relative_error"] == pytest.approx(math.sqrt(noise / signal), rel=1e-5)
    assert out["sqnr_db"] == pytest.approx(10 * math.log10(signal / noise), rel=1e-5)
    assert out["gap_db"] == pytest.approx(10 * math.log10(noise / (256 * 4.0**-32 + 128 * 4.0**-16)), rel=1e-5)
    assert out["layers"]["a"]["relative_error"] == pytest.approx(0.1, rel=1e-5)
    assert out["layers"]["b"]["sqnr_db"] == pytest.approx(10 * math.log10(4), rel=1e-5)


def test_constants_of_the_tensor_do_not_enter_the_rate():
    w = normal(64, 64)
    q = METHODS["nf4-g64"].quantize(w)
    assert q.parts()["constants"] > 0
    out = weight_errors([("layer", w, q)])
    assert out["gap_db"] == pytest.approx(20 * math.log10(2) * 4.5 - out["sqnr_db"], abs=1e-6)


def test_sums_are_as_exact_as_in_float64():
    w = normal(512, 2048) + 30  # a long sum of nearly equal squares, where float32 would drift
    q = METHODS["uniform-int8-g64"].quantize(w)
    exact = (q.decode().double() - w.double()).norm() / w.double().norm()
    assert weight_errors([("layer", w, q)])["relative_error"] == pytest.approx(float(exact), rel=1e-5)


def test_exact_decoding_has_no_decibels_but_a_reason():
    out = errors(normal(8, 8), "fp32")
    assert out["relative_error"] == 0
    assert out["sqnr_db"] is None
    assert out["gap_db"] is None
    assert out["reason"] == out["gap_reason"] == "the decoded weights are exact"
    assert out["histogram"]["error_edges"] is None
    json.dumps(out, allow_nan=False)


def test_zero_weights_and_broken_decodings_give_null():
    zeros = torch.zeros(8, 8)
    out = errors(zeros, "uniform-int4-g64")
    assert out["relative_error"] is None
    assert "zero" in out["reason"]
    assert out["histogram"]["edges"] is None
    bad = weight_errors([("layer", normal(8, 8), Dense((8, 8), torch.float32, torch.full((8, 8), float("nan"))))])
    assert bad["relative_error"] is None
    assert "not finite" in bad["layers"]["layer"]["reason"]
    json.dumps([out, bad], allow_nan=False)


def test_a_layer_of_zeros_beside_another_does_not_spoil_the_whole():
    w = normal(8, 64)
    q = METHODS["nf4-g64"]
    alone = weight_errors([("a", w, q.quantize(w))])
    both = weight_errors([("a", w, q.quantize(w)), ("z", w * 0, q.quantize(w * 0))])
    assert both["relative_error"] == alone["relative_error"]
    assert both["layers"]["z"]["relative_error"] is None


def test_decoded_weights_of_the_caller_are_used_and_left_alone(monkeypatch):
    w = normal(8, 64)
    q = METHODS["nf4-g64"].quantize(w)
    want, given = weight_errors([("a", w, q)]), q.decode()
    copy, original = given.clone(), w.clone()
    monkeypatch.setattr(type(q), "decode", None)
    assert weight_errors([("a", w, q)], decoded={"a": given}) == want
    assert torch.equal(given, copy)
    assert torch.equal(w, original)


def test_half_precision_weights_are_compared_in_float32():
    w = normal(16, 64).bfloat16()
    q = METHODS["nf4-g64"].quantize(w)
    assert weight_errors([("a", w, q)])["relative_error"] == weight_errors([("a", w.float(), q)])["relative_error"]


def test_wrong_arguments_are_named():
    w = normal(8, 64)
    q = METHODS["nf4-g64"].quantize(w)
    with pytest.raises(ValueError, match="no layer"):
        weight_errors([])
    with pytest.raises(ValueError, match="'a' is named twice"):
        weight_errors([("a", w, q), ("a", w, q)])
    with pytest.raises(ValueError, match=r"'a': weight \[8, 32\], decoded \[8, 64\]"):
        weight_errors([("a", w[:, :32], q)])
    with pytest.raises(ValueError, match="'b' is not among the layers: a"):
        weight_errors([("a", w, q)], histogram_layer="b")


# --- histogram ---------------------------------------------------------------------------------------------------


def test_densities_integrate_to_the_share_inside():
    w = normal(256, 256)
    w[0, 0] = 100.0  # an outlier must not squeeze all else into one bin
    h = histogram(w, w + 0.01 * normal(256, 256, 1), METHODS["nf4-g64"].quantize(w))
    for edges, density, inside in (
        ("edges", "weight_density", "inside"),
        ("error_edges", "error_density", "error_inside"),
    ):
        widths = [b - a for a, b in zip(h[edges], h[edges][1:], strict=False)]
        assert len(h[density]) == BINS == len(widths)
        assert sum(d * x for d, x in zip(h[density], widths, strict=True)) == pytest.approx(h[inside], rel=1e-9)
        assert min(widths) == pytest.approx(max(widths))
    assert h["inside"] == 1 - 1 / 256**2
    rms = float(w.square().mean().sqrt())
    assert h["edges"][-1] == -h["edges"][0] == pytest.approx(5 * rms, rel=1e-6)
    middle = h["weight_density"][BINS // 2]
    assert middle == pytest.approx(1 / math.sqrt(2 * math.pi), rel=0.08)  # the normal density at 0; some 3300 a bin


def test_named_layer_is_the_one_shown():
    w = normal(8, 64)
    pairs = [(name, w * size, METHODS["nf4-g64"].quantize(w * size)) for name, size in (("a", 1.0), ("b", 2.0))]
    assert weight_errors(pairs)["histogram"]["layer"] == "a"
    shown = weight_errors(pairs, histogram_layer="b")["histogram"]
    assert shown["layer"] == "b"
    assert shown["edges"] == [2 * e for e in weight_errors(pairs)["histogram"]["edges"]]


def test_levels_of_one_scale_are_exactly_the_values_decoded():
    w = normal(64, 64)
    for method in ("uniform-int4-tensor", "uniform-int8-textbook"):
        q = METHODS[method].quantize(w)
        assert set(q.decode().flatten().tolist()) <= set(levels_of(q))
    q = lloyd_max(w)
    assert levels_of(q) == sorted(set(q.decode().flatten().tolist()))


def test_levels_of_many_scales_are_at_the_median_scale():
    q = METHODS["nf4-g64"].quantize(normal(64, 256))
    scale = float(q.scale.median())
    assert levels_of(q) == pytest.approx([float(v) * scale for v in q.levels.flatten().sort().values], rel=1e-6)
    codes = pack(torch.zeros(2, 4, dtype=torch.uint8), 2)
    grid = Affine(
        (2, 4), torch.float32, codes, torch.tensor([[0.5], [0.5]]), torch.tensor([[1.0], [1.0]]), 2, "channel"
    )
    assert levels_of(grid) == [-0.5, 0.0, 0.5, 1.0]


def test_levels_go_through_a_reshaped_weight_and_are_absent_from_a_dense_one():
    w = normal(4, 64)
    inner = METHODS["nf4-g64"].quantize(w.reshape(1, -1))
    assert levels_of(Reshaped((4, 64), torch.float32, inner)) == levels_of(inner)
    assert levels_of(METHODS["fp32"].quantize(w)) is None


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_a_group_that_json_can_hold(name):
    w = normal(32, 64)
    out = weight_errors([("layer", w, quantize(name, w))])
    json.dumps(out, allow_nan=False)
    assert 0 <= out["relative_error"] < 1
