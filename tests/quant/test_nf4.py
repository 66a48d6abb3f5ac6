"""NF4: the published table and thresholds, the formula behind it, ties, sizes; what every table owes odd weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scipy.stats import norm

from quant import METHODS
from quant.methods.double import DynamicMap, Flat
from quant.methods.nf4 import NF, normal_float
from quant.nearest import nearest, thresholds

LEVELS = (  # bitsandbytes, csrc/gemm_4bit_common.cuh
    "-1 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334 "
    "-0.09105003625154495 0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 "
    "0.44070982933044434 0.5626170039176941 0.7229568362236023 1"
)
THRESHOLDS = (
    "-0.8480964 -0.6106329 -0.4599953 -0.3396794 -0.2346074 -0.1379117 -0.0455250 0.0397902 0.1202553 0.2035213 "
    "0.2920138 0.3893125 0.5016634 0.6427869 0.8614784"
)
TABLE_METHODS = [
    *("nf4-g64", "nf4-g128", "nf3-g64", "nf2-g64", "nf4-g64-dq", "nf4-g64-dq-int8"),
    *("fp4-g64", "fp4-bnb-g64", "fp4-g64-dq", "mxfp4", "uniform-int4-g64-dq"),
    *("uniform-int4-g64", "uniform-int4-asym-g64", "uniform-int4-float-zero-g64", "uniform-int8-textbook"),
]


def numbers(text: str) -> torch.Tensor:
    return torch.tensor([float(x) for x in text.split()])


def test_levels_are_the_published_constants():
    assert torch.equal(NF().levels, numbers(LEVELS))


def test_thresholds_are_the_published_midpoints():
    # printed with seven digits
    torch.testing.assert_close(thresholds(NF().levels), numbers(THRESHOLDS), atol=6e-8, rtol=0)


def test_a_value_on_a_threshold_takes_the_lower_code_and_the_next_float_the_upper():
    cuts = thresholds(NF().levels)
    up = torch.nextafter(cuts, torch.tensor(2.0))
    w = torch.cat([cuts, up, torch.tensor([1.0, -1.0])]).reshape(1, -1)  # absolute maximum 1: the scale is 1
    codes = NF(group="tensor").quantize(w).unpacked()[0].tolist()
    assert codes[:15] == list(range(15))
    assert codes[15:30] == list(range(1, 16))


def test_formula_gives_the_constants():
    # to 1.92e-7: the constants were computed with delta rounded to seven digits and stored as float32
    assert (normal_float(4) - numbers(LEVELS).double()).abs().max() < 1.95e-7


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_formula_against_scipy(bits: int):
    count = 2 ** (bits - 1)
    delta = (1 / 2 ** (bits + 1) + 1 / (2 ** (bits + 1) - 2)) / 2
    upper = [norm.ppf(0.5 + (0.5 - delta) * i / count) for i in range(1, count + 1)]
    lower = [norm.ppf(0.5 + (0.5 - delta) * i / (count - 1)) for i in range(1, count)]
    want = [-x / lower[-1] for x in reversed(lower)] + [0.0] + [x / upper[-1] for x in upper]
    torch.testing.assert_close(normal_float(bits), torch.tensor(want, dtype=torch.float64), atol=1e-12, rtol=0)


def test_counting_and_binary_search_agree():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    table = normal_float(5).float()
    assert torch.equal(nearest(x, table), torch.bucketize(x, thresholds(table)).to(torch.uint8))
    fine = torch.linspace(-2, 2, 256)
    closest = (x[:, None].double() - fine.double()).abs().argmin(1)
    assert torch.equal(nearest(x, fine).long(), closest)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("nf4-g64", 4.5),
        ("nf4-g128", 4.25),
        ("nf3-g64", 3.5),
        ("nf2-g64", 2.5),
        ("nf4-g64-dq", 4.126953125),
        ("fp4-g64-dq", 4.126953125),
        ("uniform-int4-g64-dq", 4.126953125),
        ("nf4-g64-dq-int8", 4 + 8 / 64 + (32 + 8) / (64 * 256)),
        ("fp4-g64", 4.25),
        ("fp4-bnb-g64", 4.5),
        ("mxfp4", 4.25),
        ("uniform-int4-g64", 4.25),
    ],
)
def test_bits_per_weight_by_counted_bytes(name: str, bits: float):
    weight = METHODS[name].quantize(torch.randn(128, 256, generator=torch.Generator().manual_seed(0)))
    assert weight.bits_per_weight == bits
    assert weight.nbytes == sum(t.numel() * t.element_size() for t in weight.stored().values())
    assert sum(weight.parts().values()) == weight.nbytes


def test_constants_of_double_quantized_nf4_are_stated_apart():
    # 16 and 256 levels and the offset, in float32
    assert METHODS["nf4-g64-dq"].quantize(torch.randn(128, 256)).parts()["constants"] == 4 * (16 + 256 + 1)


def test_a_short_last_group_has_its_own_maximum():
    w = torch.tensor([[4.0] * 64 + [1e-3, -1e-3, 5e-4]])
    decoded = NF().quantize(w).decode()
    torch.testing.assert_close(decoded[0, 64:66], w[0, 64:66], rtol=1e-6, atol=0)


@pytest.mark.parametrize("group", ["channel", "tensor"])
def test_wide_groups_equal_one_int_group(group: str):
    w = torch.randn(1, 200, generator=torch.Generator().manual_seed(2))
    assert torch.equal(NF(group=group).quantize(w).decode(), NF(group=200).quantize(w).decode())


def test_pieces_do_not_show():
    """More values than one cache piece, in groups that do not divide it."""
    w = torch.randn(700, 150, generator=torch.Generator().manual_seed(3))
    whole = NF(group=48).quantize(w).decode()
    rows = torch.cat([NF(group=48).quantize(w[i : i + 1]).decode() for i in range(0, 700, 53)])
    assert torch.equal(whole[::53], rows)


def test_flat_groups_cross_rows():
    w = torch.randn(5, 65, generator=torch.Generator().manual_seed(4))
    flat = Flat(NF()).quantize(w)
    assert torch.equal(flat.decode().flatten(), NF().quantize(w.reshape(1, -1)).decode().flatten())
    assert flat.shape == (5, 65)
    assert not torch.equal(flat.decode(), NF().quantize(w).decode())


def test_codes_against_the_stored_maxima_are_never_worse():
    w = torch.randn(64, 512, generator=torch.Generator().manual_seed(5))
    plain = NF(scale=DynamicMap()).quantize(w).decode() - w
    against = NF(scale=DynamicMap(), against="stored").quantize(w).decode() - w
    assert (against.abs() <= plain.abs() + 1e-6).all()
    assert against.square().mean() < plain.square().mean()


@pytest.mark.parametrize(
    "settings", [{"bits": 1}, {"bits": 9}, {"group": 0}, {"group": True}, {"scale": "int8"}, {"against": "both"}]
)
def test_bad_settings_fail_at_construction(settings: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(settings))):
        dataclasses.replace(NF(), **settings)


def nasty() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(6)
    spike = torch.zeros(4, 128)
    spike[1, 70] = 3.0
    return {
        "constant": torch.full((3, 65), 0.7),
        "negative constant": torch.full((3, 65), -0.7),
        "spike": spike,
        "small": torch.randn(17, 130, generator=g) * 6e-8,
        "large": torch.randn(17, 130, generator=g) * 65504,
        "one": torch.tensor([[2.5]]),
        "mixed": torch.randn(17, 130, generator=g) * torch.logspace(-12, 4, 17)[:, None],
    }


@pytest.mark.parametrize("name", TABLE_METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 65), (17, 130)])
def test_zeros_and_denormals_decode_to_zero(name: str, shape: tuple[int, int]):
    for value in (0.0, 1e-41, -1e-41):
        assert not METHODS[name].quantize(torch.full(shape, value)).decode().any()


@pytest.mark.parametrize("name", TABLE_METHODS)
@pytest.mark.parametrize("case", nasty())
def test_nasty_weights_decode_finite_with_no_sign_turned(name: str, case: str):
    w = nasty()[case]
    decoded = METHODS[name].quantize(w).decode()
    assert decoded.isfinite().all()
    assert decoded.shape == w.shape
    if "float-zero" not in name:  # a float zero point puts no level on zero, so small weights may cross it
        assert (decoded * w >= 0).all()
    # the widest gap of any table is the maximum itself (NF2: 0 to -1), and half of it the largest error; the one
    # hundredth is for the rounding of quantized maxima
    assert (decoded - w).abs().max() <= 0.51 * w.abs().max()
