"""Pruned weights on the engine over the kernels' dispatcher, run here on its references: every format, every value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from kernels.dispatch import OPERATORS
from quant import METHODS, LinearWithLoRA, LoRAConfig, QuantizedLinear, quantize_model
from quant.core import QuantizedTensor, Quantizer
from quant.engines import choose
from quant.engines.sparse import Scattered, Sparse
from quant.engines.triton import Triton
from quant.formats import BitMask, Codebook, KeptRows, NofM
from quant.formats.kept_blocks import KeptBlocks
from quant.methods.blocks import Blocks
from quant.methods.double import DynamicMap, Flat
from quant.methods.kmeans import KMeans
from quant.methods.nf4 import NF
from quant.methods.none import Unquantized
from quant.methods.prune import Magnitude, NOfM, Rows
from quant.methods.uniform import Uniform

VALUES: dict[str, Quantizer] = {
    "bf16": Unquantized("bfloat16"),
    "fp32": Unquantized("float32"),
    "int4": Uniform(4, 32),
    "int3-zero": Uniform(3, 16, zero="integer"),
    "int8-channel": Uniform(8, "channel"),
    "nf4": NF(bits=4, group=32),
    "nf4-double": NF(bits=4, group=16, scale=DynamicMap()),
    "mxfp4": METHODS["mxfp4"],
    "int4-nested": Uniform(4, 16, scale=Uniform(8, "channel")),
    "flat-int4": Flat(Uniform(4, 32)),
    "flat-int5-crossing": Flat(Uniform(5, 24)),
    "k-means": KMeans(bits=3),
}
PRUNERS: dict[str, type[Quantizer] | object] = {
    "mask": lambda values: Magnitude(0.6, values=values),
    "2of4": lambda values: NOfM(2, 4, values=values),
    "4of8": lambda values: NOfM(4, 8, values=values),
    "3of7": lambda values: NOfM(3, 7, values=values),
    "1of2": lambda values: NOfM(1, 2, values=values),
    "rows": lambda values: Rows(0.3, values=values),
    "rows-2of4": lambda values: Rows(0.3, values=NOfM(2, 4, values=values)),
    "blocks": lambda values: Blocks(0.4, 8, 16, values=values),
}
CPU = torch.device("cpu")


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


def stored(pruner: str, values: str, n: int = 20, k: int = 96) -> QuantizedTensor:
    made: QuantizedTensor = PRUNERS[pruner](VALUES[values]).quantize(random(n, k))  # type: ignore[operator]
    return made


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("pruner", PRUNERS)
def test_product_and_gradient_are_those_of_the_decoded_weight(pruner: str, values: str) -> None:
    weight = stored(pruner, values)
    if pruner.startswith("rows") and choose("auto", weight, torch.float32, CPU, 1) != "triton":
        assert values == "flat-int5-crossing"  # blocks of codes that cross rows, in rows that are kept whole
        return
    layer = QuantizedLinear(weight, random(20, seed=1), "triton")
    x, dy = random(2, 3, 96, seed=2).requires_grad_(), random(20, 3, 2, seed=3).permute(2, 1, 0)
    y = layer(x)
    y.backward(dy)
    w = weight.decode().double()
    assert relative(y.detach(), x.detach().double() @ w.T + layer.bias.detach().double()) < 1e-6  # type: ignore[union-attr]
    assert x.grad is not None
    assert relative(x.grad, dy.double() @ w) < 1e-6
    assert layer.engine_name == "triton"


@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith(("prune", "blocks"))])
def test_every_registered_pruned_format_has_its_kernels(name: str) -> None:
    weight = METHODS[name].quantize(random(32, 72))
    assert choose("auto", weight, torch.bfloat16, CPU, 1) == "triton"
    layer = QuantizedLinear(weight, None)
    x = random(3, 72, seed=1)
    assert relative(layer(x), x @ weight.decode().T) < 1e-6


@pytest.mark.parametrize("k", [1, 7, 70, 515, 1030])
@pytest.mark.parametrize(("n", "m"), [(1, 4), (3, 8), (5, 6)])
@pytest.mark.parametrize("values", ["fp32", "int4", "int3-zero"])
def test_odd_rows_of_other_n_of_m_are_masks(values: str, n: int, m: int, k: int) -> None:
    weight = NOfM(n, m, values=VALUES[values]).quantize(random(5, k) + 0.1)
    assert isinstance(weight, NofM)
    ready = Sparse(weight)
    assert ready.product in ("bitmask_matmul", "bitmask_coded_matmul")
    assert ready.nbytes > 0
    x, dy = random(2, k, seed=1), random(2, 5, seed=2)
    w = weight.decode()
    assert relative(ready.matmul(x), x @ w.T) < 1e-6
    assert relative(ready.transposed(dy), dy @ w) < 1e-6


def test_stored_values_and_scales_are_read_where_they_lie() -> None:
    for pruner, values in (("mask", "nf4"), ("4of8", "nf4-double"), ("2of4", "int4"), ("4of8", "mxfp4")):
        weight = stored(pruner, values)
        ready = Sparse(weight)  # type: ignore[arg-type]
        inner = weight.values  # type: ignore[attr-defined]
        assert ready.value["values"].data_ptr() == inner.codes.data_ptr()
        starts = 20 * 4 if pruner == "mask" else 0
        assert ready.nbytes == starts


def test_a_constant_added_to_every_kept_value_is_added_to_no_other() -> None:
    weight = stored("4of8", "nf4")
    assert isinstance(weight, NofM)
    inner = weight.values
    assert isinstance(inner, Codebook)
    weight = dataclasses.replace(weight, values=dataclasses.replace(inner, offset=torch.tensor([0.7])))
    x = random(3, 96, seed=1)
    assert relative(Sparse(weight).matmul(x), x @ weight.decode().T) < 1e-6


def test_a_weight_of_which_nothing_is_kept_multiplies_to_zero() -> None:
    for quantizer in (Magnitude(1.0), Rows(1.0), Blocks(1.0)):
        weight = quantizer.quantize(random(6, 10))
        assert isinstance(weight, BitMask | KeptRows | KeptBlocks)
        layer = QuantizedLinear(weight, None, "triton")
        x = random(2, 10).requires_grad_()
        y = layer(x)
        y.sum().backward()
        assert y.shape == (2, 6)
        assert not y.any()
        assert x.grad is not None
        assert not x.grad.any()


@pytest.mark.parametrize("pruner", PRUNERS)
def test_gradcheck_of_the_product_in_float64(pruner: str) -> None:
    weight = stored(pruner, "nf4", 12, 24)
    ready = Triton().prepare(weight, torch.float32)
    x = random(2, 24, seed=1).double().requires_grad_()
    inner, b = random(2, 3, seed=2).double().requires_grad_(), random(12, 3, seed=3).double().requires_grad_()
    assert torch.autograd.gradcheck(ready.matmul, x)
    assert torch.autograd.gradcheck(ready.adapted, (x, inner, b))


@pytest.mark.parametrize(("pruner", "values", "name"), [
    ("2of4", "bf16", "two_of_four_matmul"),
    ("2of4", "nf4", "n_of_m_matmul"),
    ("4of8", "bf16", "n_of_m_matmul"),
    ("mask", "bf16", "bitmask_matmul"),
    ("mask", "int4", "bitmask_coded_matmul"),
])  # fmt: skip
def test_many_rows_multiply_with_a_decoded_copy(pruner: str, values: str, name: str) -> None:
    weight = stored(pruner, values)
    ready, x = Sparse(weight), random(300, 96)  # type: ignore[arg-type]
    assert ready.product == name
    decoder, called = OPERATORS[ready.decoder], []

    def counting(**given: object) -> Tensor:
        called.append(ready.decoder)
        w: Tensor = decoder.op.reference(**given)
        return w

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kernels.custom.available", lambda x: True)  # as on a GPU: the reference is not taken instead
        patch.setitem(OPERATORS, ready.decoder, dataclasses.replace(decoder, call=counting))
        assert relative(ready.matmul(x), x @ weight.decode().T) < 1e-6
        assert called == [ready.decoder]
        with pytest.raises(ValueError, match="a Triton kernel needs a GPU"):
            ready.matmul(x[:4])
        assert called == [ready.decoder]


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_compiled_model_has_no_graph_break_and_the_same_gradients(pruner: str) -> None:
    plain = nn.Sequential(nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 32, bias=False))
    for p, seed in zip(plain.parameters(), range(3), strict=True):
        p.data = random(*p.shape, seed=seed) * 0.1
    model = quantize_model(plain, PRUNERS[pruner](VALUES["nf4"]), engine="triton")  # type: ignore[operator]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for rows in (2, 5):
        found: list[tuple[Tensor, Tensor | None]] = []
        for function in (compiled, model):
            x = random(rows, 48, seed=9).requires_grad_()
            y = function(x)
            y.square().sum().backward()
            found.append((y.detach(), x.grad))
        for mine, theirs in zip(*found, strict=True):
            assert mine is not None
            assert theirs is not None
            assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pruner", ["2of4", "mask", "rows", "blocks"])
def test_an_adapter_over_a_pruned_weight_is_the_plain_path(pruner: str) -> None:
    outputs = []
    for engine in ("triton", "reference"):
        base = QuantizedLinear(stored(pruner, "nf4"), random(20, seed=4), engine)
        layer = LinearWithLoRA(base, LoRAConfig(rank=5, alpha=3, seed=1))
        layer.lora.B.data = random(20, 5, seed=5)  # type: ignore[union-attr, operator]
        x = random(3, 96, seed=6).requires_grad_()
        layer(x).square().sum().backward()
        outputs.append((layer(x).detach(), x.grad, layer.lora.B.grad))  # type: ignore[union-attr]
        assert base.engine_name == engine
    for mine, theirs in zip(*outputs, strict=True):
        assert relative(mine, theirs) < 1e-5  # type: ignore[arg-type]


def test_blocks_that_no_kernel_reads_are_left_to_another_engine_with_the_reason() -> None:
    weight = Blocks(0.5, 5, 8).quantize(random(20, 96))
    assert choose("auto", weight, torch.float32, CPU, 1) != "triton"
    with pytest.raises(ValueError, match="blocks must be powers of two up to 64, of 8 weights or more, got 5 x 8"):
        choose("triton", weight, torch.float32, CPU, 1)


def test_rows_that_are_pruned_are_zero_and_have_no_gradient() -> None:
    weight = Rows(0.5, values=NF(bits=4, group=32)).quantize(random(20, 96))
    assert isinstance(weight, KeptRows)
    ready = Triton().prepare(weight, torch.float32)
    assert isinstance(ready, Scattered)
    gone = ~weight.kept()
    assert not ready.matmul(random(3, 96))[:, gone].any()
    dy = torch.zeros(3, 20)
    dy[:, gone] = 1e30
    assert not ready.transposed(dy).any()
