"""Other libraries' quantizers: what they store is counted, what they decode is theirs, ours is no worse."""

from __future__ import annotations

import json
import math

import pytest
import torch

from quant import METHODS, PARTS, QuantizedLinear
from quant.core import from_config
from quant.formats.foreign import Foreign
from quant.peers import CONTROLS, PEERS, find_method
from quant.peers.base import register, register_control
from quant.peers.bitsandbytes import FourBit
from quant.peers.controls import Moved, MovedScales
from tests.quant.samples import gaussian

N, K = 256, 512
peers = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.gpu] * ("gemlite" in name)) for name in sorted(PEERS)]
)
W = gaussian(N, K)
# what each stores, in bits a weight, per-tensor constants left out: codes + scales (+ zeros) as the library holds them
BITS = {
    "peer-bnb-nf4": 4.5,
    "peer-bnb-nf4-dq": 4 + 8 / 64 + 32 / (64 * 256),
    "peer-bnb-fp4": 4.5,
    "peer-bnb-int8": 8 + 32 / K,
    "peer-gemlite-hqq-4bit": 4.5,
    "peer-gemlite-hqq-2bit": 2.5,
    "peer-gemlite-mxfp4": 4.25,
    "peer-gemlite-nvfp4": 4.5,
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


# bits a weight by which a peer stores more than ours at the same settings, and why; all others store as many
MORE = {
    "peer-bnb-int8": 16 / K,  # a scale in float32, ours in float16
    "peer-hqq-3bit": 32 * math.ceil(N * K / 64 / 10) * 64 / (N * K) - 3,  # ten codes in 32 bits and a last word
    "peer-torchao-int8": (16 + 8) / K,  # a scale in float32, and an int8 zero point that is 0
    "peer-torchao-int4-g64": 4 + (16 + 8) / 64,  # as above, and codes in whole bytes
    "peer-torchao-nf4-dq": -8 / (64 * 256),  # our 8-bit scales have a zero point a block
}
# the step of ours over that of torchao, which uses the code that a symmetric grid leaves out
STEPS = {"peer-torchao-int8": 127.5 / 127, "peer-torchao-int4-g64": 7.5 / 7}


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
def test_its_error_is_that_of_its_bits(name: str) -> None:
    width = PEERS[name].code_bits
    assert 0 < relative(name) < 4 * 2.0**-width  # a step of 2**-width of twice the largest weight, evenly rounded


@peers
def test_ours_stores_the_same_but_for_what_is_named(name: str) -> None:
    theirs, ours = (find_method(n).quantize(W) for n in (name, PEERS[name].ours))
    assert theirs.bits_per_weight - ours.bits_per_weight == pytest.approx(MORE.get(name, 0.0), abs=1e-6)


@peers
def test_ours_has_the_same_error(name: str) -> None:
    """0.2 %: scales rounded to float16 before or after, best rounds of HQQ; a scale or a zero amiss costs more."""
    w = gaussian(1024, 1024)
    ratio = relative(PEERS[name].ours, w) / relative(name, w)
    assert 0.998 <= ratio <= 1.002 * STEPS.get(name, 1.0)
    assert (ratio > 1.002) == (name in STEPS)  # a longer step, and neither more nor less than that


@peers
def test_what_differs_is_said_where_the_weights_do(name: str) -> None:
    theirs, ours = (find_method(n).quantize(W).decode() for n in (name, PEERS[name].ours))
    assert bool(PEERS[name].differs) != torch.equal(theirs, ours)
    assert PEERS[name].settings()["code_bits"] == PEERS[name].code_bits <= PEERS[name].quantize(W).bits_per_weight
    assert all(find_method(other) is METHODS[other] for other in PEERS[name].beside)


def test_a_torchao_step_uses_the_code_that_ours_leaves_out() -> None:
    """The spacing of decoded values: max / 7.5 and max / 7."""
    name = "peer-torchao-int4-g64"
    if name not in PEERS:
        pytest.skip("torchao is not installed")
    for method, parts in ((name, 7.5), (PEERS[name].ours, 7.0)):
        levels = find_method(method).quantize(W[:1, :64]).decode().unique()  # type: ignore[no-untyped-call]
        assert float(levels.diff().min()) == pytest.approx(float(W[0, :64].abs().max()) / parts, rel=1e-3)


@pytest.mark.parametrize("name", [n for n in CONTROLS if isinstance(CONTROLS[n], Moved)])
def test_a_moved_copy_has_other_weights_of_the_same_error_and_size(name: str) -> None:
    control = CONTROLS[name]
    assert isinstance(control, Moved)
    assert control.method.settings() == METHODS[control.of].settings()
    assert control.family == METHODS[control.of].family
    w = gaussian(1024, 1024)
    moved, own = control.quantize(w), METHODS[control.of].quantize(w)
    assert moved.bits_per_weight == own.bits_per_weight
    assert not torch.equal(moved.decode(), own.decode())
    assert torch.equal(moved.decode(), control.quantize(w).decode())
    assert relative(name, w) == pytest.approx(relative(control.of, w), rel=5e-4)  # 1e-3 of a scale, squared, and luck


def test_draws_of_a_control_differ_and_the_move_is_that_of_its_amount() -> None:
    scale = torch.rand(64, 64) + 1
    a, b = (MovedScales("float32", 1e-3, draw).quantize(scale).decode() / scale - 1 for draw in (1, 2))
    assert float(a.std()) == pytest.approx(1e-3, rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.1


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
    with pytest.raises(ValueError, match="begins with 'control-', got 'moved'"):
        register_control("moved", FourBit())
    assert not set(PEERS) & set(METHODS)
    assert not set(CONTROLS) & {*PEERS, *METHODS}
