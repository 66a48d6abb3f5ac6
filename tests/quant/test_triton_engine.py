"""The engine over the kernels' dispatcher, run here on its references: product, gradient, update, compiled graph.

What the engine does is the same on every device; which kernels the dispatcher then runs is tested in `tests/kernels`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from quant import METHODS, LinearWithLoRA, LoRAConfig, QuantizedLinear, add_lora, lora_parameters, quantize_model
from quant.engines import choose
from quant.engines.triton import Fused, Triton
from quant.formats import Codebook, Reshaped, Vectors
from quant.methods.double import DynamicMap, Flat
from quant.methods.gaussian import Pairs
from quant.methods.uniform import Uniform

CPU = torch.device("cpu")
QUANTIZERS = {
    "nf4": METHODS["nf4-g64"],
    "nf4-double": METHODS["nf4-g64-dq"],
    "nf4-double-uniform": METHODS["nf4-g64-dq-int8"],
    "int4": Uniform(4, 32),
    "int3-zero": Uniform(3, 16, zero="integer"),
    "int4-float-zero": Uniform(4, 64, zero="float"),
    "int8-channel": Uniform(8, "channel"),
    "int4-nested": Uniform(4, 16, scale=Uniform(8, "channel")),
    "int4-double": Uniform(4, 16, scale=DynamicMap(7)),
    "mxfp4": METHODS["mxfp4"],
    "flat-mxfp4": Flat(METHODS["mxfp4"]),
    "flat-nf4-double": Flat(METHODS["nf4-g64-dq"]),
    "flat-int4": Flat(Uniform(4, 32, zero="float")),
    "pairs": Pairs(32),
    "pairs-double": Pairs(16, DynamicMap()),
}


@pytest.fixture(autouse=True)
def _takes_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The engine takes weights here as if they were on a GPU."""

    monkeypatch.setattr(Triton, "serves", lambda self, device: True)
    yield
    torch._dynamo.reset()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_product_and_gradient_are_those_of_the_decoded_weight(name: str) -> None:
    weight = QUANTIZERS[name].quantize(random(48, 128))
    layer = QuantizedLinear(weight, random(48, seed=1), "triton")
    x, dy = random(2, 3, 128, seed=2).requires_grad_(), random(48, 3, 2, seed=3).permute(2, 1, 0)
    y = layer(x)
    y.backward(dy)
    w = weight.decode().double()
    assert relative(y.detach(), x.detach().double() @ w.T + layer.bias.detach().double()) < 1e-6  # type: ignore[union-attr]
    assert x.grad is not None
    assert relative(x.grad, dy.double() @ w) < 1e-6
    assert layer.engine_name == "triton"


@pytest.mark.parametrize("name", QUANTIZERS)
def test_gradcheck_of_the_product_in_float64(name: str) -> None:
    fused = Fused(QUANTIZERS[name].quantize(random(16, 64)))
    x = random(2, 64, seed=1).double().requires_grad_()
    inner, b = random(2, 3, seed=2).double().requires_grad_(), random(16, 3, seed=3).double().requires_grad_()
    assert torch.autograd.gradcheck(fused.matmul, x)
    assert torch.autograd.gradcheck(fused.adapted, (x, inner, b))


def test_eight_bit_scales_are_read_as_they_are_stored_and_others_decoded_once() -> None:
    w = random(48, 128)
    kept = {name: QuantizedLinear(q.quantize(w), None, "triton") for name, q in QUANTIZERS.items()}
    for layer in kept.values():
        layer(random(1, 128))
    none = ("nf4", "nf4-double", "int4", "int8-channel", "int4-double", "flat-nf4-double", "mxfp4", "flat-mxfp4")
    none += ("pairs", "pairs-double")
    assert {name for name in QUANTIZERS if kept[name].cache_nbytes == 0} >= set(none)
    assert kept["nf4-double-uniform"].cache_nbytes == 48 * 2 * 4
    assert kept["int4-nested"].cache_nbytes == 48 * 8 * 4
    double = kept["nf4-double"]._fused
    assert isinstance(double, Fused)
    assert any(double.arguments["scale"].codes.data_ptr() == p.data_ptr() for p in kept["nf4-double"].parameters())


def test_a_constant_added_to_every_weight_reaches_product_and_gradient() -> None:
    packed = METHODS["nf4-g64"].quantize(random(16, 64))
    assert isinstance(packed, Codebook)
    weight = Codebook(packed.shape, packed.dtype, packed.codes, packed.levels, packed.scale, torch.tensor([0.7]),
                      packed.bits, packed.group, 0)  # fmt: skip
    x = random(3, 64, seed=1).requires_grad_()
    QuantizedLinear(weight, None, "triton")(x).backward(dy := random(3, 16, seed=2))
    assert x.grad is not None
    assert relative(x.grad, dy @ weight.decode()) < 1e-6
    assert relative(Fused(weight).matmul(x.detach()), x.detach() @ weight.decode().T) < 1e-6


def test_a_weight_that_was_loaded_copied_or_written_to_is_the_one_that_compiled_code_uses() -> None:
    torch._dynamo.reset()
    first, second = (QuantizedLinear(QUANTIZERS["int3-zero"].quantize(random(48, 128, seed=s)), None) for s in (0, 1))
    x = random(3, 128, seed=2)
    compiled = torch.compile(first, fullgraph=True, backend="aot_eager")
    assert relative(compiled(x), x @ first.weight_qt.decode().T) < 1e-6
    first.load_state_dict(second.state_dict())
    assert relative(compiled(x), x @ second.weight_qt.decode().T) < 1e-6
    again = torch.compile(copy.deepcopy(second), fullgraph=True, backend="aot_eager")
    assert relative(again(x), x @ second.weight_qt.decode().T) < 1e-6


def test_float64_is_left_to_another_engine() -> None:
    weight = Uniform(4, 64).quantize(random(48, 128))
    assert choose("auto", weight, torch.float32, CPU, 1) == "triton"
    assert choose("auto", weight, torch.float64, CPU, 1) != "triton"
    with pytest.raises(ValueError, match=r"it computes in float32, float16 and bfloat16, not in torch\.float64"):
        QuantizedLinear(weight, None, "triton")(random(1, 128).double())


@pytest.mark.parametrize("k", [128, 72])
def test_pairs_inside_a_rotation_are_multiplied_by_their_kernels(k: int) -> None:
    weight = METHODS["higgs2-2bit"].quantize(random(48, k))
    layer = QuantizedLinear(weight, None)
    x, dy = random(3, k, seed=1).requires_grad_(), random(3, 48, seed=2)
    y = layer(x)
    y.backward(dy)
    assert layer.engine_name == "around"
    assert x.grad is not None
    assert relative(y.detach(), x.detach() @ weight.decode().T) < 1e-6
    assert relative(x.grad, dy @ weight.decode()) < 1e-6
    inside = layer._ready("around", torch.float32)
    assert {name for name, _ in inside.made} == {"triton"}  # type: ignore[attr-defined]


def test_codes_of_four_weights_are_left_to_another_engine_with_the_reason() -> None:
    codes = torch.zeros(6, 12, dtype=torch.uint8)
    weight = Vectors((6, 96), torch.float32, codes, torch.randn(16, 4), torch.ones(6, 1), 4, "channel")
    assert choose("auto", weight, torch.float32, CPU, 1) != "triton"
    with pytest.raises(ValueError, match="its kernels read codes of two weights, not of 4"):
        choose("triton", weight, torch.float32, CPU, 1)


def test_flat_blocks_that_cross_rows_are_left_to_another_engine() -> None:
    weight = Flat(Uniform(4, 64)).quantize(random(6, 96))
    assert isinstance(weight, Reshaped)
    assert choose("auto", weight, torch.float32, CPU, 1) != "triton"


def adapted(name: str, engine: str, **settings: object) -> LinearWithLoRA:
    base = QuantizedLinear(QUANTIZERS[name].quantize(random(48, 128)), random(48, seed=4), engine)
    layer = LinearWithLoRA(base, LoRAConfig(**{"rank": 5, "alpha": 3, "seed": 1} | settings))  # type: ignore[arg-type]
    layer.lora.B.data = random(48, 5, seed=5)  # type: ignore[union-attr, operator]
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["nf4-double", "int3-zero", "pairs-double"])
def test_the_update_in_the_product_is_the_plain_path_with_its_gradients(name: str, dtype: torch.dtype) -> None:
    fused, plain = adapted(name, "triton"), adapted(name, "reference")
    bound = 1e-6 if dtype == torch.float32 else 2**-6  # the plain path rounds product, update and their sum
    dy = random(2, 3, 48, seed=6).to(dtype)
    grads: list[list[Tensor]] = []
    outputs: list[Tensor] = []
    for layer in (fused, plain):
        x = random(2, 3, 128, seed=7).to(dtype).requires_grad_()
        outputs.append(layer(x))
        assert outputs[-1].dtype == dtype
        outputs[-1].backward(dy)
        grads.append([t.grad for t in (x, *lora_parameters(nn.Sequential(layer)))])  # type: ignore[misc]
    assert fused.base.engine_name == "triton"  # type: ignore[union-attr]
    for mine, theirs in zip([outputs[0].detach(), *grads[0]], [outputs[1].detach(), *grads[1]], strict=True):
        assert mine.dtype == theirs.dtype
        assert relative(mine, theirs) < bound


def test_the_update_is_in_the_product_unless_dropout_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = Fused.adapted
    monkeypatch.setattr(Fused, "adapted", lambda *a: (calls.append(1), original(*a))[1])
    x = random(2, 128)
    adapted("nf4", "triton")(x)
    assert len(calls) == 1
    layer = adapted("nf4", "triton", dropout=0.5)
    layer.train()(x)
    assert len(calls) == 1
    layer.eval()(x)
    assert len(calls) == 2
    adapted("nf4", "tiled")(x)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "name", ["nf4", "nf4-double", "int4-nested", "int3-zero", "flat-nf4-double", "flat-int4", "pairs-double"]
)
def test_a_compiled_model_has_no_graph_break_and_the_same_gradients(name: str) -> None:
    plain = nn.Sequential(nn.Linear(128, 192), nn.Tanh(), nn.Linear(192, 64, bias=False))
    for p, seed in zip(plain.parameters(), range(3), strict=True):
        p.data = random(*p.shape, seed=seed) * 0.1
    model = add_lora(quantize_model(plain, QUANTIZERS[name], engine="triton"), LoRAConfig(rank=3, seed=0))
    for i, p in enumerate(lora_parameters(model)):
        p.data = random(*p.shape, seed=i) * 0.1
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for rows in (2, 5):
        found: list[list[Tensor]] = []
        for function in (compiled, model):
            model.zero_grad()
            x = random(rows, 128, seed=9).requires_grad_()
            y = function(x)
            y.square().sum().backward()
            found.append([y.detach(), *(t.grad.clone() for t in (x, *lora_parameters(model)))])  # type: ignore[union-attr]
        for mine, theirs in zip(*found, strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_format_without_kernels_still_runs_under_compile() -> None:
    layer = QuantizedLinear(Flat(Uniform(4, 64)).quantize(random(6, 96)), None)
    x = random(2, 96)
    assert torch.allclose(torch.compile(layer, backend="eager")(x), layer(x))
