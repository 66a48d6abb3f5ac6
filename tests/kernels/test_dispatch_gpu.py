"""The dispatcher on a GPU: every route, gradients, CUDA graphs, compiled graphs, memory, very large weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.dispatch import OPERATORS
from kernels.op import operations, relative_error
from kernels.packing import pack
from kernels.routes import ROUTES, taking
from tests.kernels.conftest import run_guarded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PRODUCTS = [f"{family}_{what}" for family in ("codebook", "affine", "pairs") for what in ("matmul", "grad", "lora")]
SIZES = (1, 3, 17, 63, 64, 65, 127, 1000, 4097)
SHAPES = [(SIZES[i], SIZES[(i + shift) % 9], SIZES[(2 * i + 5) % 9]) for i in range(9) for shift in (1, 5)]
BOUND = {torch.float32: 2**-18, torch.float16: 2**-9, torch.bfloat16: 2**-6}  # products of a thousand terms and more
GRADED = {"matmul": ("x",), "grad": ("dy",), "lora": ("x", "inner", "b")}


def sized(name: str, m: int, n: int, k: int, dtype: torch.dtype) -> dict[str, Any]:
    return dict(operations()[name].sized(m, n, k, dtype, "cuda").arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in PRODUCTS if not name.endswith("matmul")])
def test_odd_sizes(name: str, dtype: torch.dtype) -> None:
    op = operations()[name]
    wrong = []
    for m, n, k in SHAPES:
        arguments = sized(name, m, n, k, dtype)
        wrong += [(m, n, k, said) for said in [op.disagreement(run_guarded(op, arguments), arguments)] if said]
    assert wrong == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", ROUTES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_route_is_right_and_its_graph_gives_the_same_bits(name: str, way: str, dtype: torch.dtype) -> None:
    call, arguments = OPERATORS[name].call, sized(name, 33, 1000, 2048, dtype)
    with taking(way):
        want = call(**arguments).clone()  # compiles
        exact = operations()[name].exact(arguments)
        assert relative_error(want, exact) < BOUND[dtype]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = call(**arguments)
    for _ in range(3):
        got.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 5, 300])
@pytest.mark.parametrize("name", PRODUCTS)
def test_gradients_are_those_of_the_decoded_weight(name: str, m: int, dtype: torch.dtype) -> None:
    family, what = name.split("_")
    arguments = sized(name, m, 520, 1000, dtype)
    of = GRADED[what]
    mine = {key: arguments[key].clone().requires_grad_() for key in of}
    theirs = {key: arguments[key].double().requires_grad_() for key in of}
    side = {key: value for key, value in arguments.items() if key not in (*of, "k")}
    w = operations()[f"{family}_dequantize"].reference(**side, shape=(520, 1000), dtype=torch.float64)
    want = theirs["dy"] @ w if what == "grad" else theirs["x"] @ w.T
    if what == "lora":
        want = want + theirs["inner"] @ theirs["b"].T
    got = OPERATORS[name].call(**{**arguments, **mine})
    outer = torch.randn(want.shape, device="cuda").to(dtype)
    got.backward(outer)
    want.backward(outer.double())
    for key in of:
        assert mine[key].grad is not None
        assert mine[key].grad.dtype == arguments[key].dtype
        assert relative_error(mine[key].grad, theirs[key].grad) < BOUND[dtype], key


def network(dtype: torch.dtype) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Two layers of 512, one with an adapter, and their inputs."""
    first, second = sized("codebook_matmul", 32, 512, 512, dtype), sized("affine_lora", 32, 512, 512, dtype)
    weight = {key: value for key, value in first.items() if key != "x"}
    other = {key: value for key, value in second.items() if key not in ("x", "inner", "b")}

    def forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        hidden = torch.tanh(OPERATORS["codebook_matmul"].call(x, **weight) / 100)
        return OPERATORS["affine_lora"].call(x=hidden, inner=hidden.float() @ a.T, b=b, **other)

    a = torch.randn(second["b"].shape[1], 512, device="cuda")
    return forward, [first["x"], a, second["b"]]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    "how", [{"mode": "reduce-overhead"}, {"backend": "cudagraphs"}], ids=["inductor", "cudagraphs"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_with_cuda_graphs_it_has_no_break_and_the_same_gradients(
    dtype: torch.dtype, how: dict[str, str]
) -> None:
    forward, inputs = network(dtype)
    torch._dynamo.reset()
    compiled = torch.compile(forward, fullgraph=True, **how)  # type: ignore[call-overload]
    want = [t.clone().requires_grad_() for t in inputs]
    y = forward(*want)
    y.float().square().mean().backward()
    for _ in range(4):  # warm-up, capture, replay
        got = [t.clone().requires_grad_() for t in inputs]
        torch.compiler.cudagraph_mark_step_begin()
        z = compiled(*got)
        z.float().square().mean().backward()
        assert relative_error(z.detach(), y.detach()) < BOUND[dtype]
        for mine, theirs in zip(got, want, strict=True):
            assert mine.grad is not None
            assert relative_error(mine.grad, theirs.grad) < BOUND[dtype]


@pytest.mark.parametrize(("m", "copies"), [(16, 0), (512, 1)])
def test_nothing_dense_outlives_a_product_or_its_gradient(m: int, copies: int) -> None:
    arguments = sized("codebook_matmul", m, 4096, 4096, torch.bfloat16)
    x = arguments.pop("x").requires_grad_()
    OPERATORS["codebook_matmul"].call(x, **arguments).sum().backward()
    x.grad, dense = None, 4096 * 4096 * 2
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = OPERATORS["codebook_matmul"].call(x, **arguments)
    assert torch.cuda.memory_allocated() - before < y.nbytes + dense // 8
    y.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < (copies + 0.9) * dense


def test_a_gradient_of_more_than_31_bits_of_weights() -> None:
    n, k = 70001, 32768
    codes = torch.randint(256, (n, k // 2), dtype=torch.uint8, device="cuda")
    scale = torch.rand(n, k // 64, device="cuda", dtype=torch.float16)
    dy = torch.zeros(3, n, device="cuda", dtype=torch.bfloat16)
    dy[:, -300:] = torch.randn(3, 300, device="cuda")
    op = operations()["affine_grad"]
    settings: dict[str, Any] = {"zero": None, "k": k, "bits": 4, "group": 64}
    whole = op.triton(dy, codes, scale, **settings)
    last = {"dy": dy[:, -300:].contiguous(), "codes": codes[-300:], "scale": scale[-300:], **settings}
    assert op.disagreement(whole, last) is None


@pytest.mark.parametrize("name", ["codebook_grad", "affine_lora"])
def test_two_runs_give_the_same_bits_and_rows_do_not_depend_on_each_other(name: str) -> None:
    op, arguments = operations()[name], sized(name, 64, 2048, 4096, torch.bfloat16)
    first = op.triton(**arguments)
    for _ in range(10):
        assert torch.equal(op.triton(**arguments), first)
    rows = [key for key in ("x", "dy", "inner") if key in arguments]
    fewer = op.triton(**{**arguments, **{key: arguments[key][:16].contiguous() for key in rows}})
    assert relative_error(fewer, first[:16]) < BOUND[torch.bfloat16]


def test_codes_that_were_packed_on_the_device_are_read() -> None:
    codes = pack(torch.arange(16, dtype=torch.uint8, device="cuda").repeat(64, 8), 4)
    one = torch.eye(64, dtype=torch.bfloat16, device="cuda")
    got = OPERATORS["affine_grad"].call(one, codes, torch.ones(64, 2, device="cuda"), None, k=128, bits=4, group=64)
    assert torch.equal(got, (torch.arange(16, device="cuda") - 8).to(torch.bfloat16).repeat(64, 8))
