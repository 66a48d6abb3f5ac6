"""Quantizers on a GPU: the very bits of the CPU reference, for every dtype, configuration and size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import quantize, quantize_nested
from kernels.op import operations
from kernels.tuning import Kernel
from tests.kernels.conftest import run_guarded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
NAMES = ("codebook_quantize", "affine_quantize", "nested_quantize")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EXAMPLES = [(name, e.label) for name in NAMES for e in operations()[name].examples(torch.float32, "cpu")]
KINDS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "codebook": ("codebook_quantize", {"levels": torch.linspace(-1, 1, 16) ** 3}),
    "symmetric": ("affine_quantize", {"zero": None}),
    "integer": ("affine_quantize", {"zero": "integer"}),
    "float": ("affine_quantize", {"zero": "float"}),
}


def on_gpu(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.cuda() if isinstance(value, Tensor) else value for name, value in arguments.items()}


def differences(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> list[int]:
    """How many values differ, output by output; dtypes and shapes must agree."""
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in want]
    return [int((a.cpu() != b.cpu()).sum()) for a, b in zip(got, want, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "label"), EXAMPLES)
def test_it_is_the_reference_on_the_cpu(name: str, label: str, dtype: torch.dtype) -> None:
    op = operations()[name]
    arguments = next(e.arguments for e in op.examples(dtype, "cpu") if e.label == label)
    assert not any(differences(run_guarded(op, on_gpu(arguments)), op.reference(**arguments)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [64, 8192, "tensor"])
@pytest.mark.parametrize("kind", KINDS)
def test_millions_of_weights_give_the_same_bits(kind: str, group: int | str, dtype: torch.dtype) -> None:
    name, own = KINDS[kind]
    weight = torch.randn(512, 8192, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[::7, 1000] = weight[::7, 1000].abs() * 20
    arguments = {"weight": weight, "bits": 4, "group": group, "stored": torch.float32, **own}
    op = operations()[name]
    assert not any(differences(op.triton(**on_gpu(arguments)), op.reference(**arguments)))


def test_every_configuration_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [(quantize, word) for word in ("QUANTIZE", "EXTREMES", "SIDES", "ENCODE")]
    for kind, (name, own) in KINDS.items():
        op = operations()[name]
        for group in (64, "channel", 17):
            weight = torch.randn(64, 8192, generator=torch.Generator().manual_seed(1))
            arguments = {"weight": weight, "bits": 4, "group": group, "stored": torch.float16, **own}
            want = op.reference(**arguments)
            for module, word in kernels:
                kernel: Kernel = getattr(module, word)
                for config in kernel.configs:
                    alone = Kernel(kernel.fn, (config,), kernel.slow, kernel.key)
                    with monkeypatch.context() as patch:
                        patch.setattr(module, word, alone)
                        got = op.triton(**on_gpu(arguments))
                    assert not any(differences(got, want)), (kind, group, word, config)


def test_nested_scales_of_a_large_layer() -> None:
    op = operations()["nested_quantize"]
    assert quantize_nested.NESTED.configs
    arguments = op.sized(1, 8192, 8192, torch.float32, "cpu").arguments
    assert not any(differences(op.triton(**on_gpu(arguments)), op.reference(**arguments)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_graph_gives_the_same_bits(kind: str) -> None:
    name, own = KINDS[kind]
    weight = torch.randn(64, 4096, device="cuda")
    arguments = {"weight": weight, "bits": 4, "group": 64, "stored": torch.float16, **on_gpu(own)}
    op = operations()[name]
    want = [t.clone() for t in op.triton(**arguments)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = op.triton(**arguments)
    for t in got:
        t.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert not any(differences(got, tuple(want)))


@pytest.mark.parametrize("group", [64, "channel"])
def test_offsets_beyond_31_bits(group: int | str) -> None:
    n, k = 70001, 32768  # 2.3e9 weights
    weight = torch.empty(n, k, dtype=torch.bfloat16, device="cuda").normal_()
    settings = {"bits": 8, "group": group, "zero": None, "stored": torch.float16}
    op = operations()["affine_quantize"]
    codes, scale = op.triton(weight, **settings)
    last = op.triton(weight[-100:].clone(), **settings)
    assert not any(differences((codes[-100:], scale[-100:]), last))
    assert not any(differences(last, op.reference(weight[-100:].cpu(), **settings)))
