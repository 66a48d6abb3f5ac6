"""Quantized layers and models on a GPU: product, gradient, training of an adapter, compiled models, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quant import METHODS, LoRAConfig, QuantizedLinear, add_lora, lora_parameters, quantize_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
NAMES = (
    *("nf4-g64", "nf4-g64-dq", "uniform-int4-g64", "mxfp4"),
    *(name for name in METHODS if name.startswith(("prune", "blocks"))),
)
COMPILED = ("prune-4of8", "prune-50-nf4-g64", "prune-rows-10", "blocks-50-8x8-int4-g64")
BOUND = {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("m", [1, 17, 400])
@pytest.mark.parametrize("name", NAMES)
def test_product_and_gradient_are_those_of_the_decoded_weight(name: str, m: int, dtype: torch.dtype) -> None:
    weight = METHODS[name].quantize(torch.randn(320, 512))
    layer = QuantizedLinear(weight, torch.randn(320)).to("cuda")
    x = torch.randn(m, 512, device="cuda").to(dtype).requires_grad_()
    dy = torch.randn(m, 320, device="cuda").to(dtype)
    y = layer(x)
    y.backward(dy)
    w = weight.decode().double().cuda()
    assert layer.engine_name == "triton"
    assert layer.bias is not None
    assert x.grad is not None
    assert relative(y.detach(), x.detach().double() @ w.T + layer.bias.detach().double()) < BOUND[dtype]
    assert relative(x.grad, dy.double() @ w) < BOUND[dtype]


@pytest.mark.parametrize("m", [1, 17, 400])
def test_pairs_inside_a_rotation_are_multiplied_by_their_kernels(m: int) -> None:
    weight = METHODS["higgs2-2bit"].quantize(torch.randn(320, 512))
    layer = QuantizedLinear(weight, None).to("cuda")
    x = torch.randn(m, 512, device="cuda", dtype=torch.bfloat16).requires_grad_()
    dy = torch.randn(m, 320, device="cuda", dtype=torch.bfloat16)
    y = layer(x)
    y.backward(dy)
    w = weight.decode().double().cuda()
    assert layer.engine_name == "around"
    assert {name for name, _ in layer._ready("around", torch.bfloat16).made} == {"triton"}  # type: ignore[attr-defined]
    assert x.grad is not None
    assert relative(y.detach(), x.detach().double() @ w.T) < BOUND[torch.bfloat16]
    assert relative(x.grad, dy.double() @ w) < BOUND[torch.bfloat16]


def trained(how: str) -> list[float]:
    """Losses of a few steps of an adapter over NF4, in bfloat16."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)).to("cuda", torch.bfloat16)
    engine = "reference" if how == "reference" else "auto"
    model = add_lora(quantize_model(plain, METHODS["nf4-g64-dq"], engine=engine), LoRAConfig(rank=8, seed=0))
    run = torch.compile(model, fullgraph=True) if how == "compiled" else model
    optimizer = torch.optim.AdamW(list(lora_parameters(model)), lr=1e-2)
    draw = torch.Generator().manual_seed(1)
    x, target = (torch.randn(48, 256, generator=draw).cuda().bfloat16() for _ in range(2))
    losses = []
    for _ in range(12):
        loss = (run(x) - target).float().square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("how", ["fused", "compiled"])
def test_an_adapter_learns_over_the_kernels_as_over_the_decoded_weight(how: str) -> None:
    torch._dynamo.reset()
    found, want = trained(how), trained("reference")
    assert found[-1] < 0.9 * found[0]
    assert relative(torch.tensor(found), torch.tensor(want)) < 0.02


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_pruned_layer_has_no_graph_break_and_the_same_gradient(name: str) -> None:
    torch._dynamo.reset()
    layer = QuantizedLinear(METHODS[name].quantize(torch.randn(320, 512)), None).to("cuda")
    compiled = torch.compile(layer, fullgraph=True)
    for m in (1, 17, 400):
        x = torch.randn(m, 512, device="cuda", dtype=torch.bfloat16)
        dy = torch.randn(m, 320, device="cuda", dtype=torch.bfloat16)
        found = []
        for run in (compiled, layer):
            mine = x.clone().requires_grad_()
            y = run(mine)
            y.backward(dy)
            assert mine.grad is not None
            found.append((y.detach(), mine.grad))
        for got, want in zip(*found, strict=True):
            assert relative(got, want) < BOUND[torch.bfloat16]


def test_a_layer_on_a_gpu_keeps_no_dense_copy() -> None:
    layer = QuantizedLinear(METHODS["nf4-g64-dq"].quantize(torch.randn(2048, 2048)), None).to("cuda")
    x = torch.randn(512, 2048, device="cuda", dtype=torch.bfloat16).requires_grad_()
    layer(x).sum().backward()
    x.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y = layer(x)
    kept = torch.cuda.memory_allocated() - before - y.nbytes
    assert kept < 2048 * 2048 // 8
    assert layer.cache_nbytes < 2048 * 2048 // 8
