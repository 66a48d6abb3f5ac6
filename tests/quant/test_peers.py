"""Other libraries' quantizers: what they store is counted, what they decode is theirs, ours is no worse."""

from __future__ import annotations

import json
import math

import pytest
import torch

from quant import METHODS, PARTS, QuantizedLinear
from quant.core import from_config
from quant.formats.foreign import Foreign
from quant.peers import PEERS, find_method
from quant.peers.base import register
from quant.peers.bitsandbytes import FourBit
from tests.quant.samples import gaussian

N, K = 256, 512
peers = pytest.mark.parametrize("name", sorted(PEERS))
W = gaussian(N, K)
# what each stores, in bits a weight, per-tensor constants left out: codes + scales (+ zeros) as the library holds them
BITS = {
    "peer-bnb-nf4": 4.5,
    "peer-bnb-nf4-dq": 4 + 8 / 64 + 32 / (64 * 256),
    "peer-bnb-fp4": 4.5,
    "peer-bnb-int8": 8 + 32 / K,
    "peer-hqq-4bit": 4.5,
    "peer-hqq-3bit": 3.2 + 32 / 64,  # ten 3-bit codes in 32 bits, and a last word that is not full
    "peer-hqq-2bit": 2.5,
    "peer-quanto-int8": 8 + 16 / K,
    "peer-quanto-int4": 4.5,
    "peer-quanto-int4-hqq": 4.5,
    "peer-quanto-int2": 2.5,
    "peer-torchao-int8": 8 + 32 / K,
    "peer-torchao-int4-g64": 8 + (32 + 8) / 64,  # 4-bit integers in bytes, a float32 scale and an int8 zero a group
    "peer-torchao-nf4-dq": 4 + 8 / 64 + 32 / (64 * 256),
}


def relative(name: str, w: torch.Tensor = W) -> float:
    error = find_method(name).quantize(w).decode() - w
    return float(error.norm() / w.norm())


@peers
def test_bits_are_those_that_the_library_stores(name: str) -> None:
    q = PEERS[name].quantize(W)
    assert isinstance(q, Foreign)
    assert sum(q.parts().values()) == q.nbytes == sum(t.nbytes for t in q.stored().values())
    assert set(q.parts()) <= set(PARTS)
    assert q.bits_per_weight == pytest.approx(BITS[name], abs=0.04)  # row sums of torchao, hqq's last word


@peers
def test_its_error_is_that_of_its_bits_and_ours_is_no_worse(name: str) -> None:
    ours = METHODS[PEERS[name].ours]
    width = 4 if "int4" in name else math.floor(BITS[name])
    assert 0 < relative(name) < 4 * 2.0**-width  # a step of 2**-width of twice the largest weight, evenly rounded
    # 2 %: two layouts of one method round their scales differently; a real deficit would be larger
    assert relative(PEERS[name].ours) <= 1.02 * relative(name)
    assert ours.quantize(W).bits_per_weight <= PEERS[name].quantize(W).bits_per_weight + 0.26


@peers
def test_a_peer_is_a_layer_like_any_other_and_keeps_the_weight_it_was_given(name: str) -> None:
    before = W.clone()
    q = PEERS[name].quantize(W)
    assert torch.equal(W, before)
    x = gaussian(3, K, seed=1)
    torch.testing.assert_close(QuantizedLinear(q, None)(x), x @ q.decode().T)
    again = from_config(json.loads(json.dumps(q.config())), q.stored())
    assert torch.equal(again.decode(), q.decode())
    assert PEERS[name].settings()["version"]


@peers
def test_two_weights_of_one_peer_decode_each_to_itself(name: str) -> None:
    first, second = PEERS[name].quantize(W), PEERS[name].quantize(-2 * W)
    a = first.decode()
    assert float((second.decode() + 2 * W).norm()) < float((2 * W).norm())
    assert torch.equal(first.decode(), a)


def test_a_foreign_weight_of_another_process_is_refused() -> None:
    q = Foreign.made(W, "somewhere", [("codes", W.half())], lambda stored: stored[0])
    with pytest.raises(ValueError, match="stored by somewhere can be read only by the process that made it"):
        from_config(q.config() | {"ticket": 10**9}, q.stored())
    with pytest.raises(ValueError, match="stores 7 tensors; 1 to 6 are possible"):
        Foreign.made(W, "somewhere", [("codes", W)] * 7, lambda stored: stored[0])


def test_names_of_peers_and_of_what_is_not_there() -> None:
    with pytest.raises(ValueError, match="begins with 'peer-', got 'bnb'"):
        register("bnb", FourBit())
    with pytest.raises(ValueError, match=r"unknown peer 'peer-none'; installed: .*pip install -e '.\[peers\]'"):
        find_method("peer-none")
    with pytest.raises(ValueError, match=r"unknown method 'nf4-g65'; there are .* among them nf4-g64"):
        find_method("nf4-g65")
    assert find_method("nf4-g64") is METHODS["nf4-g64"]
    assert not set(PEERS) & set(METHODS)
