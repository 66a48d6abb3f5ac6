"""Exchange with the bitsandbytes library itself: equal bytes, equal decoded bits, its state dict both ways."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from quant.bnb import from_bnb_state_dict, to_bnb_state_dict
from quant.core import UnsupportedError
from quant.formats import FixedCodebook
from quant.methods.double import DynamicMap, Flat, dynamic_levels
from quant.methods.fp4 import BNB_FP4_LEVELS, FP4
from quant.methods.nf4 import NF
from quant.methods.uniform import Uniform

ODD = [(1, 1), (3, 65), (17, 130), (4, 96)]
FOUR_MILLION = (2048, 2048)


@pytest.fixture(scope="module")
def bnb() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning)
        return pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")


def normal(shape: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def saved(bnb: Any, w: Tensor, kind: str = "nf4", group: int = 64, double: bool = False) -> dict[str, Tensor]:
    """What bitsandbytes saves for `w`."""
    codes, state = bnb.quantize_4bit(w, blocksize=group, quant_type=kind, compress_statistics=double)
    return {"weight": codes} | {f"weight.{name}": t for name, t in state.as_dict(packed=True).items()}


def decoded_by(bnb: Any, tensors: dict[str, Tensor]) -> Tensor:
    """What bitsandbytes makes of a state dict, seen as one row of an even number of values.

    Its AVX-512 kernel takes a neighbouring block's maximum where a block ends inside a row (4 x 96, blocks of 64), and
    odd rows go through torch.compile for many seconds; both are left out by the one row, whose codes are the same.
    """
    parts = {name.removeprefix("weight."): t for name, t in tensors.items() if name != "weight"}
    state = bnb.QuantState.from_dict(parts, torch.device("cpu"))
    n, k = state.shape
    state.shape = torch.Size((1, n * k + n * k % 2))
    return bnb.dequantize_4bit(tensors["weight"], state).flatten()[: n * k].reshape(n, k)


def meta(tensors: dict[str, Tensor]) -> dict[str, Any]:
    (name,) = [n for n in tensors if "quant_state" in n]
    return json.loads(bytes(tensors[name].tolist()))


def test_tables_are_bitsandbytes_tables(bnb: Any):
    for kind, levels in (("nf4", NF().levels), ("fp4", torch.tensor(BNB_FP4_LEVELS))):
        assert torch.equal(bnb.get_4bit_type(kind, device="cpu"), levels)
    assert torch.equal(bnb.create_dynamic_map(), dynamic_levels())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", [64, 128])
def test_nf4_bytes_and_decoded_bits_are_equal(bnb: Any, dtype: torch.dtype, group: int):
    w = normal(FOUR_MILLION, dtype)
    theirs, ours = saved(bnb, w, group=group), to_bnb_state_dict(NF(group=group).quantize(w))
    assert torch.equal(theirs["weight"], ours["weight"])
    assert torch.equal(theirs["weight.absmax"], ours["weight.absmax"])
    assert torch.equal(decoded_by(bnb, theirs), NF(group=group).quantize(w).dequantize())


def test_values_on_a_threshold_have_equal_bytes(bnb: Any):
    cuts = (NF().levels[1:] + NF().levels[:-1]) / 2
    near = torch.cat([torch.nextafter(cuts, torch.tensor(x)) for x in (-2.0, 2.0)])
    w = torch.cat([cuts, near, torch.ones(19)]).reshape(1, 64)
    assert torch.equal(saved(bnb, w)["weight"], to_bnb_state_dict(NF().quantize(w))["weight"])


@pytest.mark.parametrize("shape", ODD)
def test_flat_blocks_of_odd_shapes_have_equal_bytes(bnb: Any, shape: tuple[int, int]):
    w = normal(shape)
    theirs, ours = saved(bnb, w), to_bnb_state_dict(Flat(NF()).quantize(w))
    assert torch.equal(theirs["weight"], ours["weight"])
    assert torch.equal(decoded_by(bnb, theirs), Flat(NF()).quantize(w).decode())
    # the half byte that fills an odd number of values is theirs on their side and zero on ours
    mine, read = Flat(NF()).quantize(w).stored(), from_bnb_state_dict(theirs).stored()
    assert torch.equal(mine["inner.codes"].flatten(), read.get("inner.codes", read.get("codes")).flatten())


@pytest.mark.parametrize("value", [0.0, 1e-41, 1.0, -65504.0])
def test_constant_weights_decode_equally(bnb: Any, value: float):
    w = torch.full((2, 128), value)
    theirs, ours = decoded_by(bnb, saved(bnb, w)), NF().quantize(w).decode()
    if value == 1e-41:  # below 2**-100 weights are zero here, a documented difference
        assert not ours.any()
        assert theirs.abs().max() < 1e-40
    else:
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp4_decodes_to_equal_bits(bnb: Any, dtype: torch.dtype):
    """Codes differ where a value rounds to zero: bitsandbytes then writes 0 or 8, which both decode to zero."""
    w = normal(FOUR_MILLION, dtype)
    theirs, ours = saved(bnb, w, "fp4"), to_bnb_state_dict(FP4("bnb", scale="float32").quantize(w))
    assert torch.equal(decoded_by(bnb, theirs), decoded_by(bnb, ours))
    high, low = theirs["weight"] >> 4, theirs["weight"] & 15
    canonical = (high * (high != 8)) << 4 | low * (low != 8)
    assert torch.equal(canonical, ours["weight"])


def test_double_quantized_nf4(bnb: Any):
    """Weights' codes are equal; codes of the maxima may differ in 0.3 %, where the CPU build is not the nearest."""
    w = normal(FOUR_MILLION)
    theirs, ours = saved(bnb, w, double=True), to_bnb_state_dict(NF(scale=DynamicMap()).quantize(w))
    assert torch.equal(theirs["weight"], ours["weight"])
    assert (theirs["weight.absmax"] != ours["weight.absmax"]).float().mean() < 0.003
    exact = NF().quantize(w).scale.flatten() - meta(ours)["nested_offset"]
    spread = ours["weight.nested_absmax"].repeat_interleave(256)
    far, near = ((dynamic_levels()[t["weight.absmax"].int()] * spread - exact).abs() / spread for t in (theirs, ours))
    assert (near <= far + 1e-6).all()
    assert (far <= near + 2 / 65535).all()  # one step of the CPU build's look-up table
    assert torch.equal(theirs["weight.nested_absmax"], ours["weight.nested_absmax"])
    assert meta(theirs) == meta(ours)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(256, 512), *ODD])
def test_their_state_dict_is_read_and_written_back(
    bnb: Any, kind: str, double: bool, dtype: torch.dtype, shape: tuple[int, int]
):
    theirs = saved(bnb, normal(shape, dtype, seed=1), kind, double=double)
    weight = from_bnb_state_dict(theirs)
    assert weight.shape == shape
    assert torch.equal(decoded_by(bnb, theirs), weight.dequantize())
    back = to_bnb_state_dict(weight)
    assert set(back) == set(theirs)
    assert meta(back) == meta(theirs)
    assert all(torch.equal(back[name], theirs[name]) for name in theirs if "quant_state" not in name)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("method", [NF(), NF(group=128), FP4("bnb", scale="float32"), NF(scale="bfloat16")])
@pytest.mark.parametrize("shape", [(256, 512), *ODD])
def test_our_state_dict_is_read_by_the_library(bnb: Any, method: Any, double: bool, shape: tuple[int, int]):
    if double:
        method = type(method)(**{**vars(method), "scale": DynamicMap()})
    w = normal(shape, torch.bfloat16, seed=2)
    weight = Flat(method).quantize(w)
    assert torch.equal(decoded_by(bnb, to_bnb_state_dict(weight)), weight.dequantize())
    assert torch.equal(from_bnb_state_dict(to_bnb_state_dict(weight)).dequantize(), weight.dequantize())


def test_the_librarys_linear_layer_computes_with_our_weight(bnb: Any):
    nn = pytest.importorskip("bitsandbytes.nn")
    w, x = normal((96, 128), seed=3), normal((5, 128), seed=4)
    weight = NF(scale=DynamicMap()).quantize(w)
    tensors = to_bnb_state_dict(weight)
    layer = nn.Linear4bit(128, 96, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    stats = {name: t for name, t in tensors.items() if name != "weight"}
    layer.weight = nn.Params4bit.from_prequantized(tensors["weight"], stats, device="cpu")
    # one product in float32 against another: sums of 128 terms in another order
    torch.testing.assert_close(layer(x), x @ weight.decode().T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("quantizer", "shape"),
    [
        (NF(), (3, 65)),
        (NF(3), (4, 64)),
        (NF(group="channel"), (4, 64)),
        (Uniform(), (4, 64)),
        (FP4(), (4, 64)),
        (NF(scale=Uniform(8, 256)), (4, 64)),
    ],
)
def test_what_bitsandbytes_cannot_hold_is_refused(quantizer: Any, shape: tuple[int, int]):
    with pytest.raises(UnsupportedError, match="quantize with NF"):
        to_bnb_state_dict(quantizer.quantize(normal(shape)))


def test_prefix_names_the_entries_and_others_are_ignored():
    weight = NF(scale=DynamicMap()).quantize(normal((4, 64)))
    tensors = to_bnb_state_dict(weight, "model.q_proj.weight")
    assert set(tensors) == {
        "model.q_proj.weight",
        "model.q_proj.weight.absmax",
        "model.q_proj.weight.quant_map",
        "model.q_proj.weight.nested_absmax",
        "model.q_proj.weight.nested_quant_map",
        "model.q_proj.weight.quant_state.bitsandbytes__nf4",
    }
    back = from_bnb_state_dict(tensors | {"model.norm.weight": torch.ones(4)}, "model.q_proj.weight")
    assert isinstance(back, FixedCodebook)
    assert torch.equal(back.decode(), weight.decode())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.pop("weight.quant_state.bitsandbytes__nf4"), "expected one entry"),
        (lambda d: d.pop("weight.absmax"), "'weight.absmax', which is missing"),
        (lambda d: d.pop("weight.nested_absmax"), "'weight.nested_absmax', which is missing"),
        (lambda d: d.pop("weight"), "'weight', which is missing"),
        (lambda d: d.update({"weight": d["weight"][:-1]}), "must hold 128 bytes"),
        (lambda d: d.update({"weight.absmax": d["weight.absmax"][:-1]}), "must hold 4 values"),
    ],
)
def test_a_broken_state_dict_is_refused(change: Any, text: str):
    tensors = to_bnb_state_dict(NF(scale=DynamicMap()).quantize(normal((4, 64))))
    change(tensors)
    with pytest.raises(ValueError, match=text):
        from_bnb_state_dict(tensors)


def test_a_state_without_a_setting_names_it():
    tensors = to_bnb_state_dict(NF().quantize(normal((4, 64))))
    state = meta(tensors)
    del state["blocksize"]
    tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode())).byte()
    with pytest.raises(ValueError, match="has no 'blocksize'"):
        from_bnb_state_dict(tensors)
