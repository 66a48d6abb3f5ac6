"""The quantized layer as a module, and which layers of a model become one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from quant import METHODS, Calibration, LoRAConfig, QuantizedLinear, add_lora, linears, quantize_model
from quant.formats import Codebook
from quant.methods.uniform import Uniform


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64, bias=False))


def layer(engine: str = "auto") -> QuantizedLinear:
    return QuantizedLinear(Uniform(4, 32).quantize(random(16, 64)), random(16, seed=1), engine)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.twin = self.body
        self.lm_head = nn.Linear(8, 4)
        self.pooler = nn.Sequential(nn.Linear(8, 8))
        self.attention = nn.MultiheadAttention(8, 2)
        self.embeddings = nn.ModuleDict({"project": nn.Linear(8, 8)})


def test_heads_poolers_and_embeddings_are_left_and_the_choice_is_a_setting() -> None:
    named = Named()
    assert set(linears(named)) == {"body", "twin"}
    assert set(linears(named, skip=("twin",))) == {"body", "lm_head", "pooler.0", "embeddings.project"}
    assert set(linears(named, skip=("*.0", "[!l]*"))) == {"lm_head"}


def test_a_layer_under_two_names_is_quantized_once() -> None:
    q = quantize_model(Named(), Uniform(4, "channel"))
    assert q.body is q.twin
    assert isinstance(q.body, QuantizedLinear)


def test_quantizing_is_pure_and_shares_the_rest() -> None:
    original = nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96))
    before = copy.deepcopy(original.state_dict())
    q = quantize_model(original, Uniform())
    assert isinstance(original[0], nn.Linear)
    assert all(torch.equal(before[k], v) for k, v in original.state_dict().items())
    assert q[1].weight.data_ptr() == original[1].weight.data_ptr()
    q[1].weight.requires_grad_(False)
    assert original[1].weight.requires_grad


def test_a_layer_beneath_an_adapter_is_replaced_and_the_adapter_kept() -> None:
    adapted = add_lora(model(), LoRAConfig(rank=2, seed=0))
    q = quantize_model(adapted, Uniform())
    assert isinstance(q[0].base, QuantizedLinear)
    assert torch.equal(q[0].lora.A, adapted[0].lora.A)


def test_an_error_names_the_layer_and_an_empty_choice_is_an_error() -> None:
    broken = model()
    with torch.no_grad():
        broken[2].weight[3, 5] = float("nan")
    with pytest.raises(ValueError, match=r"layer '2': .*\[3, 5\]"):
        quantize_model(broken, Uniform())
    with pytest.raises(ValueError, match="no linear layer to quantize"):
        quantize_model(nn.Sequential(nn.ReLU()), Uniform())


def test_for_layers_is_asked_once_with_every_weight_and_decides_by_layer() -> None:
    seen: list[int] = []

    @dataclass(frozen=True)
    class Watching(Uniform):
        def for_layers(
            self, weights: Mapping[str, torch.Tensor], calibration: Mapping[str, Calibration] | None = None
        ) -> Mapping[str, Uniform]:
            seen.append(len(weights))
            return {name: Uniform(8 if name == "0" else 4, "channel") for name in weights}

    q = quantize_model(model(), Watching())
    assert seen == [2]
    assert (q[0].weight_qt.bits, q[2].weight_qt.bits) == (8, 4)


def test_no_stored_tensor_is_called_weight_and_it_is_no_nn_linear() -> None:
    q = quantize_model(model(), METHODS["nf4-g64"])
    assert not [name for name in q.state_dict() if name.endswith("weight")]
    assert not isinstance(q[0], nn.Linear)
    assert not any(p.requires_grad for p in q[2].parameters())


def test_nested_stored_tensors_are_parameters_with_underscores() -> None:
    weight = Uniform(4, 16, scale=Uniform(8, "channel")).quantize(random(8, 64))
    made = QuantizedLinear(weight, None)
    assert set(made.state_dict()) == {"codes", "scale__codes", "scale__scale"}
    assert torch.equal(made.weight_qt.decode(), weight.decode())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("engine", ["auto", "dense", "reference", "tiled"])
def test_y_has_the_dtype_and_leading_shape_of_x(dtype: torch.dtype, engine: str) -> None:
    y = layer(engine)(random(2, 3, 64).to(dtype))
    assert (y.dtype, y.shape) == (dtype, (2, 3, 16))
    assert layer(engine)(torch.zeros(0, 64, dtype=dtype)).shape == (0, 16)


def test_float64_is_computed_in_float64() -> None:
    made = layer()
    x = random(5, 64).double()
    want = x @ made.weight_qt.decode().double().T + made.bias.double()
    assert torch.allclose(made(x), want, rtol=1e-13, atol=1e-13)


def test_compute_dtype_rounds_x_and_gives_its_dtype_back() -> None:
    weight = Uniform(4, 64).quantize(random(48, 128))
    made = QuantizedLinear(weight, None, compute_dtype=torch.bfloat16)
    x = random(2, 128)
    assert made(x).dtype == torch.float32
    assert made.engine_name == "int4pack" or made.engine_name == "lut"
    assert torch.equal(made(x), made(x.bfloat16().float()))


def test_a_wrong_width_or_bias_is_refused() -> None:
    with pytest.raises(ValueError, match="x has 63 features, the layer takes 64"):
        layer()(torch.zeros(2, 63))
    with pytest.raises(ValueError, match=r"bias must be \[16\]"):
        QuantizedLinear(Uniform().quantize(random(16, 64)), torch.zeros(15))


@pytest.mark.parametrize("engine", ["auto", "dense", "reference"])
def test_writing_to_a_parameter_is_seen_by_the_next_product(engine: str) -> None:
    made = layer(engine)
    x = random(2, 64)
    made(x)
    with torch.no_grad():
        made.get_parameter("scale").mul_(2)
        made.bias.zero_()
    assert torch.allclose(made(x), x @ made.weight_qt.decode().T, atol=1e-5)
    other = QuantizedLinear(Uniform(4, 32).quantize(random(16, 64, seed=9)), torch.zeros(16), engine)
    made.load_state_dict(other.state_dict())
    assert torch.equal(made(x), other(x))


def test_a_copy_and_a_module_moved_to_meta_and_back_keep_their_kind() -> None:
    made = layer()
    made(random(2, 64))
    twin = copy.deepcopy(made)
    assert twin.cache_nbytes == 0
    assert torch.equal(twin(random(2, 64)), made(random(2, 64)))
    empty = made.to("meta")
    assert {t.dtype for t in empty.stored().values()} == {t.dtype for t in twin.stored().values()}


def test_it_runs_in_inference_mode_and_when_made_there() -> None:
    with torch.inference_mode():
        made = layer()
        assert torch.equal(made(random(2, 64)), layer()(random(2, 64)))
        assert torch.equal(layer("dense")(random(2, 64)), layer("dense")(random(2, 64)))


def test_trainable_levels_get_the_gradient_of_the_definition() -> None:
    packed = METHODS["nf4-g64"].quantize(random(8, 64))
    assert isinstance(packed, Codebook)
    weight = Codebook(packed.shape, packed.dtype, packed.codes, packed.levels, packed.scale, None, 4, packed.group, 0)
    made = QuantizedLinear(weight, None, trainable=("levels",))
    levels = made.get_parameter("levels")
    x, dy = random(5, 64, seed=1), random(5, 8, seed=2)
    made(x).backward(dy)
    by_hand = levels.detach().clone().requires_grad_()
    w = by_hand[0][weight.unpacked().long()] * weight.scale.float().repeat_interleave(64, 1)
    (x @ w.T).backward(dy)
    assert torch.allclose(levels.grad, by_hand.grad, rtol=1e-4, atol=1e-5)


def test_only_the_backward_pass_needs_the_dense_weight() -> None:
    made = layer()
    x = random(2, 64).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        made(x)
    assert kept == []


def test_a_model_wide_rule_names_the_layer_of_a_bad_weight() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[1].weight[2, 3] = float("nan")
    with pytest.raises(ValueError, match=r"layer '1': weight is not finite: nan at \[2, 3\]"):
        quantize_model(model, METHODS["prune-50-global"])
