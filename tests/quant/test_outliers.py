"""Dense and sparse: what is apart, what it costs, and that the product is that of the sum."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from quant import METHODS, Calibration, QuantizedLinear
from quant.formats import WithOutliers
from quant.methods.kmeans import KMeans
from quant.methods.nf4 import NF
from quant.methods.outliers import Outliers
from quant.methods.uniform import Uniform
from tests.quant.samples import calibration_of, gaussian

N, K = 48, 320


def stored_of(method: Outliers, n: int = N, k: int = K) -> tuple[WithOutliers, torch.Tensor, Calibration]:
    w, known = gaussian(n, k), calibration_of(n, k)
    q = method.quantize(w, known)
    assert isinstance(q, WithOutliers)
    return q, w, known


def test_the_sensitive_and_then_the_largest_are_apart_and_exact_in_float16() -> None:
    q, w, known = stored_of(Outliers(KMeans(2, 1), sensitive=0.01, largest=0.03))  # whose levels hold no zero
    row, column = q.places()
    apart = torch.zeros(N, K, dtype=torch.bool)
    apart[row, column] = True
    assert apart.sum() == len(row) == round(0.01 * N * K) + round(0.03 * N * K)
    sensitive = known.fisher >= known.fisher.flatten().topk(round(0.01 * N * K)).values[-1]
    assert apart[sensitive].all()
    rest = w.abs().masked_fill(sensitive, 0)
    assert rest[~apart].max() <= rest[apart & ~sensitive].min()
    torch.testing.assert_close(q.decode()[apart], w[apart], rtol=2**-10, atol=5e-5)  # 11 bits of w less its inner value


def test_the_rest_is_what_the_inner_method_makes_of_it() -> None:
    q, w, _ = stored_of(Outliers(NF(4, 64), sensitive=0.0, largest=0.02))
    row, column = q.places()
    hidden = w.clone()
    hidden[row, column] = 0
    inner = NF(4, 64).quantize(hidden)
    assert all(torch.equal(a, b) for a, b in zip(inner.stored().values(), q.inner.stored().values(), strict=True))
    rest = torch.ones(N, K, dtype=torch.bool)
    rest[row, column] = False
    assert torch.equal(q.decode()[rest], inner.decode()[rest])


def test_weights_that_are_apart_have_no_say_in_the_levels_of_the_rest() -> None:
    w, known = gaussian(8, 256), calibration_of(8, 256)
    w[:, 5] = 3.0  # far out, and of great weight
    known.fisher[:, 5] = 1e3
    method = KMeans(3, 1, importance="fisher")
    q = Outliers(method, sensitive=1 / 256, largest=0.0).quantize(w, known)
    masked = dataclasses.replace(known, fisher=known.fisher.index_fill(1, torch.tensor([5]), 0.0))
    assert torch.equal(q.inner.levels, method.quantize(w.index_fill(1, torch.tensor([5]), 0.0), masked).levels)
    assert q.inner.levels.abs().max() < 0.3


@pytest.mark.parametrize("engine", ["auto", "around", "tiled", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_product_and_gradient_are_those_of_the_sum(engine: str, dtype: torch.dtype) -> None:
    q, _, _ = stored_of(Outliers(NF(4, 64), sensitive=0.02, largest=0.05))
    layer = QuantizedLinear(q, None, engine)
    x = gaussian(5, K, seed=1).to(dtype).requires_grad_()
    dy = gaussian(5, N, seed=2).to(dtype)
    y = layer(x)
    tolerance = {"rtol": 0, "atol": {torch.float32: 1e-6, torch.float64: 1e-6, torch.bfloat16: 5e-3}[dtype]}
    torch.testing.assert_close(y, (x.double() @ q.decode().double().T).to(dtype), **tolerance)
    y.backward(dy)
    torch.testing.assert_close(x.grad, (dy.double() @ q.decode().double()).to(dtype), **tolerance)


@pytest.mark.parametrize(("bits", "want"), [(3, 3.24), (4, 4.27)])
def test_bits_as_stored_are_those_of_the_paper(bits: int, want: float) -> None:
    """3.02 -> 3.24 and 4.05 -> 4.27 bits at 0.45 % with 32-bit indices, of layers as wide as LLaMA-7B's."""
    w = gaussian(64, 4096)
    plain = KMeans(bits, 1).quantize(w)
    assert plain.bits_per_weight == pytest.approx(bits + 16 * 2**bits / 4096, abs=1e-9)  # 3.03, 4.06
    apart = Outliers(KMeans(bits, 1), 0.0, 0.0045, "int32").quantize(w)
    count = round(0.0045 * w.numel())
    extra = (count * 48 + 65 * 32) / w.numel()
    assert apart.bits_per_weight == pytest.approx(plain.bits_per_weight + extra, abs=1e-9)
    assert extra == pytest.approx(0.22, abs=0.005)
    assert apart.bits_per_weight == pytest.approx(want, abs=0.02)
    short = Outliers(KMeans(bits, 1), 0.0, 0.0045).quantize(w)
    assert apart.nbytes - short.nbytes == 2 * count


def test_index_width_follows_the_columns() -> None:
    assert Outliers(Uniform(2, 64), 0.0).quantize(gaussian(1, 1 << 15)).columns.dtype == torch.int16
    q = Outliers(Uniform(2, 64), 0.0).quantize(w := gaussian(1, (1 << 15) + 1))
    assert q.columns.dtype == torch.int32
    assert int(q.columns.max()) < w.shape[1]


def test_taking_the_largest_apart_rescues_a_grid_that_they_stretch() -> None:
    w = gaussian(64, 512)
    w[torch.arange(64), torch.randperm(512, generator=torch.Generator().manual_seed(0))[:64]] = 2.0
    plain, apart = (q.quantize(w).decode() - w for q in (Uniform(4, 128), Outliers(Uniform(4, 128), sensitive=0.0)))
    assert apart.square().mean() < 0.2 * plain.square().mean()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_or_all_apart(share: float) -> None:
    w = gaussian(6, 40)
    q = Outliers(Uniform(2, 8), sensitive=0.0, largest=share).quantize(w)
    x = gaussian(3, 40, seed=1)
    torch.testing.assert_close(QuantizedLinear(q, None)(x), x @ q.decode().T)
    if share:
        torch.testing.assert_close(q.decode(), w, rtol=2**-9, atol=1e-6)
    else:
        assert torch.equal(q.decode(), Uniform(2, 8).quantize(w).decode())


def test_values_beyond_float16_are_stored_in_float32() -> None:
    for size in (2.0**60, 2.0**-60):
        w = gaussian(6, 40) * size
        w[2, 3] = size
        q = Outliers(Uniform(4, 8), sensitive=0.0, largest=0.01).quantize(w)
        assert q.values.dtype == torch.float32
        assert q.decode()[2, 3] == size
    assert Outliers(Uniform(4, 8), sensitive=0.0).quantize(gaussian(6, 400)).values.dtype == torch.float16


def test_fisher_is_asked_for_only_where_it_is_used() -> None:
    assert Outliers(NF(), sensitive=0.0).needs == frozenset()
    assert Outliers(NF()).needs == {"fisher"}
    assert Outliers(KMeans(3, 1, importance="second_moment")).needs == {"fisher", "second_moment"}
    with pytest.raises(ValueError, match="needs the calibration's fisher"):
        METHODS["squeezellm-3bit-outliers"].quantize(gaussian(4, 64))


def test_settings_and_tensors_are_checked() -> None:
    for bad in ({"sensitive": -0.1}, {"largest": 1.5}, {"sensitive": 0.6, "largest": 0.6}, {"index": "int8"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Outliers(**bad)
    q, _, _ = stored_of(Outliers(NF(4, 64), largest=0.02))
    good = {"shape": (N, K), "dtype": torch.float32, **q.fields()}
    for field, value in (
        ("values", q.values.int()),
        ("columns", q.columns[1:]),
        ("columns", q.columns.long()),
        ("rows", q.rows[1:]),
        ("inner", NF().quantize(gaussian(4, 64))),
    ):
        with pytest.raises(ValueError, match=field):
            WithOutliers(**(good | {field: value}))
