"""Every engine multiplies with the same weight; what it keeps for that is counted beside the stored bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.packing import pack
from quant import METHODS, QuantizedLinear
from quant.core import QuantizedTensor
from quant.engines import ENGINES, choose
from quant.engines.decode import RowDecoder
from quant.engines.rows import as_rows
from quant.formats import Affine, Codebook, Integers, Reshaped
from quant.methods.uniform import Uniform

CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def codes(n: int, k: int, bits: int, seed: int = 0, top: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    high = min(1 << bits, top or 256)
    return pack(torch.randint(0, high, (n, k), generator=generator, dtype=torch.uint8), bits)


shapes = st.tuples(st.integers(1, 40), st.integers(1, 90))
groups = st.sampled_from([1, 3, 16, 64, "channel", "tensor"])


def side(shape: tuple[int, int], group: int | str, seed: int) -> Tensor:
    from quant.grouping import group_shape

    return random(*group_shape(shape, group), seed=seed).abs() + 0.1


def decoded(weight: Affine | Codebook, step: int) -> Tensor:
    decoder = RowDecoder(weight, torch.float32)
    n = weight.shape[0]
    return torch.cat([decoder.rows(s, min(s + step, n)).clone() for s in range(0, n, step)])


@settings(max_examples=150, deadline=None)
@given(shapes, st.integers(1, 8), groups, st.booleans(), st.integers(1, 40))
def test_tiles_of_an_affine_weight_equal_its_decoding_bit_for_bit(
    shape: tuple[int, int], bits: int, group: int | str, with_zero: bool, step: int
) -> None:
    zero = side(shape, group, 2) * (1 << bits) / 3 if with_zero else None
    weight = Affine(shape, torch.float32, codes(*shape, bits), side(shape, group, 1), zero, bits, group)
    assert torch.equal(decoded(weight, step), weight.decode())


@settings(max_examples=150, deadline=None)
@given(shapes, st.integers(1, 8), groups, st.integers(0, 7), st.integers(1, 40), st.booleans())
def test_tiles_of_a_codebook_equal_its_decoding_bit_for_bit(
    shape: tuple[int, int], bits: int, group: int | str, rows: int, step: int, short: bool
) -> None:
    count = max(1, (1 << bits) - 1) if short else 1 << bits
    levels = random(-(-shape[0] // rows) if rows else 1, count, seed=3)
    offset = random(1, seed=4)
    packed = codes(*shape, bits, top=count)
    weight = Codebook(shape, torch.float32, packed, levels, side(shape, group, 1), offset, bits, group, rows)
    assert torch.equal(decoded(weight, step), weight.decode())


def test_flat_blocks_are_seen_by_rows() -> None:
    flat = Uniform(4, 64).quantize(random(1, 6 * 128))
    weight = Reshaped((6, 128), torch.float32, flat)
    seen = as_rows(weight)
    assert isinstance(seen, Affine)
    assert torch.equal(seen.decode(), weight.decode())
    assert choose("auto", weight, torch.float32, CPU, 1) == "lut"


def test_flat_blocks_that_cross_rows_are_left_whole() -> None:
    weight = Reshaped((6, 96), torch.float32, Uniform(4, 64).quantize(random(1, 6 * 96)))
    assert as_rows(weight) is weight
    x = random(3, 96)
    assert relative(QuantizedLinear(weight, None)(x), x @ weight.decode().T) < 1e-6


# bfloat16 keeps 8 bits of x, of the values and of the scales: three errors of at most 2**-9 each, and its own sum
BFLOAT16 = 0.012


@pytest.mark.parametrize("group", [32, 64, 128, 256])
@pytest.mark.parametrize("zero", [None, "integer", "float"])
@pytest.mark.parametrize("m", [1, 2, 17])
def test_int4pack(group: int, zero: str | None, m: int) -> None:
    weight = Uniform(4, group, zero=zero).quantize(random(48, 512))
    x = random(m, 512, seed=1).bfloat16()
    layer = QuantizedLinear(weight, None, "int4pack")
    assert relative(layer(x), x.double() @ weight.decode().double().T) < BFLOAT16
    assert layer.engine_name == "int4pack"
    assert layer(x.float()).dtype == torch.float32


@pytest.mark.parametrize("m", [1, 2, 17])
def test_int8pack(m: int) -> None:
    weight = METHODS["uniform-int8-channel"].quantize(random(47, 224))
    x = random(m, 224, seed=1).bfloat16()
    layer = QuantizedLinear(weight, None, "int8pack")
    assert relative(layer(x), x.double() @ weight.decode().double().T) < BFLOAT16
    assert layer.engine_name == "int8pack"


REFUSALS = {
    "int4pack": [Uniform(3, 64), Uniform(4, 16), Uniform(4, "channel"), METHODS["nf4-g64"]],
    "int8pack": [Uniform(8, 64), Uniform(8, "channel", zero="integer"), Uniform(4, "channel")],
    "lut": [METHODS["fp32"]],
}


@pytest.mark.parametrize("engine", sorted(REFUSALS))
def test_a_named_engine_refuses_what_it_cannot_do_with_its_reason(engine: str) -> None:
    for quantizer in REFUSALS[engine]:
        with pytest.raises(ValueError, match=f"'{engine}' refuses this weight: it"):
            QuantizedLinear(quantizer.quantize(random(48, 128)), None, engine)


def test_the_gpu_engine_is_refused_when_it_meets_a_cpu_tensor() -> None:
    layer = QuantizedLinear(Uniform(4, 64).quantize(random(48, 128)), None, "triton")
    with pytest.raises(ValueError, match="'triton' refuses this weight: it runs on a GPU"):
        layer(random(1, 128))


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown engine 'fast'.*int4pack"):
        QuantizedLinear(Uniform().quantize(random(4, 64)), None, "fast")


def test_a_row_that_the_packed_eight_bit_product_would_read_beyond_is_refused() -> None:
    weight = Uniform(8, "channel").quantize(random(48, 200))
    with pytest.raises(ValueError, match="k is a multiple of 32, got 200"):
        QuantizedLinear(weight, None, "int8pack")
    x = random(3, 200, seed=1).bfloat16()
    assert relative(QuantizedLinear(weight, None)(x), x.double() @ weight.decode().double().T) < BFLOAT16


def test_auto_never_rounds_a_float32_x_to_bfloat16() -> None:
    for name in ("fp32", "uniform-int4-g64", "uniform-int8-channel", "uniform-int3-g64", "nf4-g64"):
        weight = METHODS[name].quantize(random(48, 128))
        for m in (1, 32):
            assert choose("auto", weight, torch.float32, CPU, m) in ("lut", "tiled", "reference"), name


def test_auto_takes_the_packed_products_for_small_bfloat16_batches() -> None:
    int4, int8 = Uniform(4, 64).quantize(random(48, 128)), Uniform(8, "channel").quantize(random(48, 128))
    assert choose("auto", int4, torch.bfloat16, CPU, 1) == "int4pack"
    assert choose("auto", int8, torch.bfloat16, CPU, 32) == "int8pack"
    assert choose("auto", int4, torch.bfloat16, CPU, 4096) == "lut"
    assert choose("auto", Uniform(4, 64).quantize(random(48, 100)), torch.bfloat16, CPU, 1) == "lut"


def test_a_slow_packed_product_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant.engines.choice.is_fast", lambda name: False)
    assert choose("auto", Uniform(4, 64).quantize(random(48, 128)), torch.bfloat16, CPU, 1) == "lut"


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_what_an_engine_keeps_is_counted_and_not_stored(name: str) -> None:
    quantizer = Uniform(8, "channel") if name == "int8pack" else Uniform(4, 64)
    weight: QuantizedTensor = quantizer.quantize(random(48, 128))
    if ENGINES[name].refuses(weight, torch.float32, CPU):
        pytest.skip(f"{name} does not run here")
    layer = QuantizedLinear(weight, None, name)
    stored, saved = weight.nbytes, set(layer.state_dict())
    layer(random(2, 128))
    least = {"dense": 48 * 128 * 4, "reference": 0, "int4pack": 48 * 64, "int8pack": 48 * 128}
    assert layer.cache_nbytes >= least.get(name, 48 * 2 * 4)  # at least the copy, or the decoded scales
    assert (name == "reference") == (layer.cache_nbytes == 0)
    assert layer.weight_qt.nbytes == stored
    assert set(layer.state_dict()) == saved


def test_the_dense_engine_dequantizes_once() -> None:
    layer = QuantizedLinear(Uniform(4, 64).quantize(random(48, 128)), None, "dense")
    x = random(2, 128)
    first = layer(x)
    kept = next(iter(layer._prepared.values()))
    assert torch.equal(layer(x), first)
    assert next(iter(layer._prepared.values())) is kept


def test_integers_decode_to_themselves_whatever_the_engine() -> None:
    weight = Integers.store(torch.arange(12.0).view(3, 4), 4)
    for engine in ("reference", "dense", "tiled", "auto"):
        assert torch.equal(QuantizedLinear(weight, None, engine)(torch.eye(4)), torch.arange(12.0).view(3, 4).T)
