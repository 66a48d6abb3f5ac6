"""Formats around another one multiply as their decoded weight does, by whatever engine serves what is inside."""

from __future__ import annotations

import pytest
import torch

from quant import METHODS, QuantizedLinear
from quant.formats import Composed, Scaled
from tests.quant.samples import gaussian

N, K = 24, 128


def scaled(method: str) -> Scaled:
    inner = METHODS[method].quantize(gaussian(N, K))
    return Scaled((N, K), torch.float32, inner, gaussian(1, K, seed=3).abs().half() + 0.5)


@pytest.mark.parametrize("method", ["uniform-int4-g64", "nf4-g64-dq", "prune-2of4", "kmeans-4bit-row", "fp32"])
@pytest.mark.parametrize("engine", ["auto", "around", "tiled", "dense"])
def test_product_and_gradient_are_those_of_the_decoded_weight(method: str, engine: str) -> None:
    q = scaled(method)
    layer = QuantizedLinear(q, None, engine)
    x = gaussian(5, K, seed=1).requires_grad_()
    dy = gaussian(5, N, seed=2)
    y = layer(x)
    torch.testing.assert_close(y, x @ q.decode().T)
    y.backward(dy)
    torch.testing.assert_close(x.grad, dy @ q.decode())
    assert layer.engine_name == ("around" if engine == "auto" else engine)


def test_composed_formats_nest() -> None:
    inner = scaled("nf4-g64")
    q = Scaled((N, K), torch.float32, inner, torch.full((1, K), 2.0))
    x = gaussian(5, K, seed=1)
    torch.testing.assert_close(QuantizedLinear(q, None)(x), 2 * x @ inner.decode().T)
    assert isinstance(inner, Composed)


def test_what_the_inner_engine_keeps_is_counted() -> None:
    layer = QuantizedLinear(scaled("uniform-int4-g64"), None)
    assert layer.cache_nbytes == 0
    layer(gaussian(5, K))
    plain = QuantizedLinear(scaled("uniform-int4-g64").inner, None)
    plain(gaussian(5, K))
    assert layer.cache_nbytes == plain.cache_nbytes > 0


def test_factors_of_another_shape_are_refused() -> None:
    inner = METHODS["nf4-g64"].quantize(gaussian(N, K))
    with pytest.raises(ValueError, match=r"columns must be floating \[1, 128\], got torch.float32 \[128\]"):
        Scaled((N, K), torch.float32, inner, torch.ones(K))
    with pytest.raises(ValueError, match=r"the inner weight must be \[24, 64\]"):
        Scaled((N, 64), torch.float32, inner, torch.ones(1, 64))
