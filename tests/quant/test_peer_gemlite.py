"""The gemlite library as a peer, as far as a machine without CUDA can tell: with a stand-in for its layer.

The stand-in stores what the library documents, W ~ codes * scales + zeros with everything transposed, and multiplies in
float16. What the library itself makes of a weight is tested with the other peers, where it is installed and has a
device.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from quant import METHODS
from quant.core import UnsupportedError
from quant.peers import CONTROLS
from quant.peers.gemlite import GemLite, GemLiteFloat
from tests.quant.samples import gaussian

W = gaussian(24, 192) * 0.03


class Layer(nn.Module):
    def __init__(self, codes: Tensor, scales: Tensor, zeros: Tensor, group: int) -> None:
        super().__init__()
        self.group = group
        self.W_q = nn.Parameter(codes.T.contiguous(), requires_grad=False)
        self.scales = nn.Parameter(scales.T.contiguous(), requires_grad=False)
        self.zeros = nn.Parameter((-zeros.float() * scales.float()).to(zeros.dtype).T, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        scales, zeros = (t.float().repeat_interleave(self.group, 0) for t in (self.scales, self.zeros))
        return (x.float() @ (self.W_q.float() * scales + zeros)).half()


class A16Wn:
    def __init__(self, device: str) -> None:
        assert device == "cpu"

    def from_weights(self, codes: Tensor, scales: Tensor, zeros: Tensor, bits: int, group: int) -> Layer:
        assert codes.dtype == torch.uint8
        assert int(codes.max()) < 1 << bits
        return Layer(codes, scales, zeros, group)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    helper = ModuleType("gemlite.helper")
    for name in ("A16Wn", "A16W4_MXFP", "A16W4_NVFP"):
        setattr(helper, name, A16Wn)
    monkeypatch.setitem(sys.modules, "gemlite", ModuleType("gemlite"))
    monkeypatch.setitem(sys.modules, "gemlite.helper", helper)
    monkeypatch.setattr("quant.peers.gemlite.device_of", lambda home: home)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("bits", [4, 2])
def test_the_weight_comes_back_through_the_product(bits: int) -> None:
    """Within float16: of the product, and of the zero points times scales, which are up to the largest weight."""
    ours = METHODS[f"hqq-int{bits}-g64"].quantize(W)
    theirs = GemLite(bits=bits).quantize(W)
    away = (theirs.decode() - ours.decode()).abs()
    assert 0 < float(away.max()) <= 2 * float(ours.decode().abs().max()) * 2.0**-11
    parts = theirs.parts()
    assert parts["scales"] == parts["zeros"] == 2 * 24 * 3
    assert parts["codes"] == 24 * 192  # the stand-in does not pack


@pytest.mark.usefixtures("stand_in")
def test_what_is_stored_decides_and_each_weight_is_its_own() -> None:
    first, second = GemLite().quantize(W), GemLite().quantize(-W)
    a = first.decode()
    assert float((second.decode() + W).norm() / W.norm()) < 0.1
    assert torch.equal(first.decode(), a)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("peer", "columns"), [(GemLite(), 96), (GemLite(group=32), 48), (GemLiteFloat(), 48)])
def test_columns_that_the_library_does_not_take_are_refused(peer: GemLite, columns: int) -> None:
    multiple = 64 if peer == GemLite() else 32
    with pytest.raises(UnsupportedError, match=f"takes columns in multiples of {multiple} here, this has {columns}"):
        peer.quantize(torch.ones(2, columns))


@pytest.mark.usefixtures("stand_in")
def test_weights_beyond_float16_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="keeps scales in float16"):
        GemLite().quantize(W * 1e-6)
    with pytest.raises(UnsupportedError, match="takes the weight in float16"):
        GemLiteFloat().quantize(W * 1e9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells of a machine without CUDA")
def test_without_a_cuda_device_it_says_so() -> None:
    with pytest.raises(UnsupportedError, match="gemlite runs on a CUDA device only, and there is none"):
        GemLite().quantize(W)


def test_settings_and_the_control_beside_it() -> None:
    assert GemLite(bits=2).settings()["code_bits"] == 2
    assert GemLiteFloat(kind="nvfp4").settings()["kind"] == "nvfp4"
    with pytest.raises(ValueError, match="2 or 4 bits and groups in multiples of 32, got 3 and 64"):
        GemLite(bits=3)
    with pytest.raises(ValueError, match="got 4 and 16"):
        GemLite(group=16)
    with pytest.raises(ValueError, match="kind must be one of mxfp4, nvfp4, got 'fp4'"):
        GemLiteFloat(kind="fp4")
    ours = CONTROLS["control-mxfp4-ceil"]
    assert ours.settings()["rounding"] == "ceil"
    high = torch.zeros(1, 32)
    high[0, 0] = 7.5
    assert float(ours.quantize(high).decode().max()) == 8.0  # 4 * 2, where the specification's scale of 1 stops at 6
    assert float(METHODS["mxfp4"].quantize(high).decode().max()) == 6.0
