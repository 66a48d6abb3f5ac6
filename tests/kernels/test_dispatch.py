"""The dispatcher: custom operators as torch wants them, gradients, and compiled graphs without a break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from kernels import custom, dispatch
from kernels.dispatch import OPERATORS
from kernels.nested import NestedScale
from kernels.op import operations, relative_error
from kernels.packing import pack

FAMILIES = ("codebook", "affine")
PRODUCTS = [f"{family}_{what}" for family in FAMILIES for what in ("matmul", "grad", "lora")]
GRADED = {"matmul": ("x",), "grad": ("dy",), "lora": ("x", "inner", "b")}
NESTED = "w4-g64-5x67x131-nested256"
LABELS = ("w4-g64-5x67x131", "w3-channel-33x67x131", "w4-g48-5x67x100", NESTED)


def arguments_of(name: str, label: str = LABELS[0], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    examples = operations()[name].examples(dtype, "cpu")
    return dict(next(e.arguments for e in examples if e.label.startswith(label)))


def exact(arguments: dict[str, Any]) -> dict[str, Any]:
    wide = ("x", "dy", "inner", "b")
    return {name: v.double().requires_grad_() if name in wide else v for name, v in arguments.items()}


def test_every_operation_has_its_operator() -> None:
    assert set(OPERATORS) == set(operations())
    for name, operator in OPERATORS.items():
        assert operator.op is operations()[name]
        assert operator.overload is getattr(torch.ops.quantbench, name).default


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_operators_as_torch_wants_them(name: str, label: str) -> None:
    operator = OPERATORS[name]
    arguments = arguments_of(name, label)
    for of in GRADED[name.split("_")[1]]:
        arguments[of] = arguments[of].clone().requires_grad_()
    opcheck(operator.overload, operator.flat(**arguments))


@pytest.mark.parametrize("name", [name for name in OPERATORS if name not in PRODUCTS])
def test_the_others_are_operators_as_torch_wants_them(name: str) -> None:
    operator = OPERATORS[name]
    example = next(iter(operator.op.examples(torch.float32, "cpu")))
    opcheck(operator.overload, operator.flat(**example.arguments))


@pytest.mark.parametrize("name", OPERATORS)
def test_called_directly_or_as_an_operator_it_is_the_reference(name: str) -> None:
    operator = OPERATORS[name]
    for example in list(operator.op.examples(torch.float16, "cpu"))[:6]:
        want = operator.op.reference(**example.arguments)
        each = operator.call(**example.arguments), operator.overload(*operator.flat(**example.arguments))
        for got in each:
            pairs = [(got, want)] if isinstance(want, Tensor) else list(zip(got, want, strict=True))
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@pytest.mark.parametrize("name", PRODUCTS)
def test_gradients_are_those_of_the_reference(name: str) -> None:
    """First and second derivatives in float64 against finite differences."""
    arguments = exact(arguments_of(name, "w2-g128-3x3x7"))
    of = GRADED[name.split("_")[1]]
    fixed = {key: value for key, value in arguments.items() if key not in of}

    def function(*values: Tensor) -> Tensor:
        out: Tensor = OPERATORS[name].call(**dict(zip(of, values, strict=True)), **fixed)
        return out

    values = tuple(arguments[key] for key in of)
    assert torch.autograd.gradcheck(function, values)
    if not name.endswith("lora"):
        assert torch.autograd.gradgradcheck(function, values)


@pytest.mark.parametrize("size", [1, 3, 17, 63, 64, 65, 127])
@pytest.mark.parametrize("name", PRODUCTS)
def test_odd_sizes_and_a_transposed_gradient(name: str, size: int) -> None:
    """Autograd through the operator and autograd through a dense float64 weight agree."""
    family, what = name.split("_")
    n, k = size, (size * 37) % 128 + 1
    draw = torch.Generator().manual_seed(size)
    codes = pack(torch.randint(8, (n, k), generator=draw, dtype=torch.uint8), 3)
    scale = torch.rand(n, -(-k // 16), generator=draw) + 0.1
    side: dict[str, Any] = {"scale": scale, "bits": 3, "group": 16}
    side |= {"levels": torch.randn(1, 8, generator=draw), "rows": 0} if family == "codebook" else {"zero": 2 * scale}
    w = operations()[f"{family}_dequantize"].reference(codes, shape=(n, k), dtype=torch.float64, **side)
    inputs = {"x": torch.randn(3, k, generator=draw)}
    if what == "grad":
        inputs, side = {"dy": torch.randn(3, n, generator=draw)}, side | {"k": k}
    elif what == "lora":
        inputs |= {"inner": torch.randn(3, 2, generator=draw), "b": torch.randn(n, 2, generator=draw)}
    mine = {key: t.double().requires_grad_() for key, t in inputs.items()}
    theirs = {key: t.double().requires_grad_() for key, t in inputs.items()}
    got: Tensor = OPERATORS[name].call(codes=codes, **mine, **side)
    want = theirs["dy"] @ w if what == "grad" else theirs["x"] @ w.T
    if what == "lora":
        want = want + theirs["inner"] @ theirs["b"].T
    outer = torch.randn(want.shape[1], want.shape[0], generator=draw).double().T
    assert relative_error(got.detach(), want.detach()) < 1e-12
    got.backward(outer)
    want.backward(outer)
    for key in mine:
        assert relative_error(mine[key].grad, theirs[key].grad) < 1e-12, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_gradients_have_the_dtype_of_what_they_are_of(name: str, dtype: torch.dtype) -> None:
    arguments = arguments_of(name, dtype=dtype)
    of = GRADED[name.split("_")[1]]
    for key in of:
        arguments[key] = arguments[key].clone().requires_grad_()
    OPERATORS[name].call(**arguments).sum().backward()
    for key in of:
        assert (arguments[key].grad.dtype, arguments[key].grad.shape) == (arguments[key].dtype, arguments[key].shape)


def test_a_gradient_that_is_not_computed_is_refused_not_left_out() -> None:
    arguments = arguments_of("codebook_matmul")
    arguments["levels"] = arguments["levels"].clone().requires_grad_()
    with pytest.raises(ValueError, match="codebook_matmul has no gradient of levels, only of x"):
        dispatch.codebook_matmul(**arguments)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_activations_are_not_kept_for_the_gradient_of_the_product(family: str) -> None:
    arguments = arguments_of(f"{family}_matmul")
    x = arguments["x"].clone().requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        OPERATORS[f"{family}_matmul"].call(**{**arguments, "x": x})
    assert kept
    assert all(t.data_ptr() != x.data_ptr() for t in kept)
    assert sum(t.nbytes for t in kept) < arguments["codes"].shape[0] * x.shape[-1] * 4  # nothing dense


def network(family: str, label: str = LABELS[0]) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]:
    """Two layers on the operators, one with an adapter, and their inputs."""
    first, second = arguments_of(f"{family}_matmul", label), arguments_of(f"{family}_lora", label)
    weight = {key: value for key, value in first.items() if key != "x"}
    other = {key: value for key, value in second.items() if key not in ("x", "inner", "b")}

    def forward(x: Tensor, a: Tensor) -> Tensor:
        hidden = OPERATORS[f"{family}_matmul"].call(x, **weight)
        back = torch.nn.functional.pad(torch.tanh(hidden), (0, x.shape[-1] - hidden.shape[-1]))
        return OPERATORS[f"{family}_lora"].call(x=back, inner=back @ a.T, b=second["b"], **other)

    a = torch.randn(second["b"].shape[1], first["x"].shape[1], generator=torch.Generator().manual_seed(1))
    return forward, first["x"], a


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(("family", "label"), [("codebook", NESTED), ("affine", LABELS[2])])
def test_a_compiled_graph_has_no_break_and_the_same_gradients(
    family: str, label: str, backend: str, dynamic: bool
) -> None:
    forward, x, a = network(family, label)
    torch._dynamo.reset()
    compiled = torch.compile(forward, fullgraph=True, backend=backend, dynamic=dynamic)
    for rows in (5, 3):
        eager, traced = ((x[:rows].clone().requires_grad_(), a.clone().requires_grad_()) for _ in range(2))
        want, got = forward(*eager), compiled(*traced)
        assert torch.equal(got, want)
        want.sum().backward()
        got.sum().backward()
        for mine, theirs in zip(traced, eager, strict=True):
            assert torch.allclose(mine.grad, theirs.grad, rtol=1e-6, atol=1e-6)


def test_a_compiled_graph_holds_the_operators_themselves() -> None:
    forward, x, a = network("codebook")
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    torch.compile(forward, fullgraph=True, backend=backend)(x, a)
    assert [name for name in seen if name.startswith("quantbench")] == [
        "quantbench.codebook_matmul.default",
        "quantbench.codebook_lora.default",
    ]


# --- signatures -----------------------------------------------------------------------------------------------------


def test_nested_scales_pass_through_the_schema_and_back() -> None:
    def reference(x: Tensor, scale: Tensor | NestedScale | None, *, group: int | str, shape: tuple[int, int]) -> Tensor:
        return x

    op = type("Named", (), {"name": "nested", "reference": staticmethod(reference)})
    signature = custom._Signature.of(op)  # type: ignore[arg-type]
    assert signature.schema == (
        "(Tensor x, Tensor? scale, Tensor? scale_levels, Tensor? scale_scale, Tensor? scale_offset, "
        "SymInt scale_group, SymInt group, SymInt[] shape) -> Tensor"
    )
    scale = NestedScale(torch.zeros(4, 2, dtype=torch.uint8), torch.ones(256), torch.ones(2), None, 4)
    for value in (scale, torch.ones(2), None):
        for group in (64, "channel", "tensor"):
            flat = signature.flatten((torch.ones(1),), {"scale": value, "group": group, "shape": (3, 4)})
            back = signature.unflatten(flat)
            assert (back["group"], back["shape"]) == (group, (3, 4))
            if isinstance(value, NestedScale):
                assert vars(back["scale"]) == vars(value)
            else:
                assert back["scale"] is value
    with pytest.raises(TypeError, match="takes x, scale, group, shape; got 1 values and group"):
        signature.flatten((torch.ones(1),), {"group": 3})


def test_a_signature_that_no_schema_expresses_is_refused_by_name() -> None:
    def reference(x: Tensor, settings: dict[str, int]) -> Tensor:
        return x

    op = type("Odd", (), {"name": "odd", "reference": staticmethod(reference)})
    with pytest.raises(TypeError, match="odd: settings is dict"):
        custom._Signature.of(op)  # type: ignore[arg-type]
