"""Every Triton kernel on a GPU against its float64 reference: what the interpreter cannot show, bfloat16 above all."""

from __future__ import annotations

import pytest
import torch

from kernels.examples import affine_sized
from kernels.launchers import rows_alike
from kernels.op import operations
from tests.kernels.conftest import run_guarded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
EXAMPLES = [(name, e.label) for name, op in operations().items() for e in op.examples(torch.float32, "cpu")]
PRODUCTS = [name for name in operations() if name.endswith("matmul")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "label"), EXAMPLES)
def test_the_kernel_is_its_reference(name: str, label: str, dtype: torch.dtype) -> None:
    op = operations()[name]
    arguments = next(e.arguments for e in op.examples(dtype, "cuda") if e.label == label)
    assert op.disagreement(run_guarded(op, arguments), arguments) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_row_of_the_product_does_not_depend_on_the_batch(name: str, dtype: torch.dtype) -> None:
    op = operations()[name]
    arguments = dict(op.sized(64, 257, 1024, dtype, "cuda").arguments)
    x = arguments["x"]
    whole = op.triton(**arguments)
    for m in (2, 3, 5, 16, 17, 33):
        assert torch.equal(op.triton(**{**arguments, "x": x[:m]}), whole[:m])
    with rows_alike():
        assert torch.equal(op.triton(**{**arguments, "x": x[:1]}), whole[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group", [64, 128, "channel"])
@pytest.mark.parametrize("name", ["affine_matmul", "affine_lora"])
def test_a_row_of_a_product_with_zero_points_does_not_depend_on_the_batch(
    name: str, group: int | str, dtype: torch.dtype
) -> None:
    op = operations()[name]
    example = affine_sized(64, 257, 1024, dtype, "cuda", product=True, group=group, zero=torch.float16)
    arguments = dict(example.arguments)
    if name == "affine_lora":
        arguments |= {"inner": torch.randn(64, 16, device="cuda"), "b": torch.randn(257, 16, device="cuda")}
    whole = op.triton(**arguments)
    assert op.disagreement(whole, arguments) is None
    with rows_alike():
        for m in (1, 2, 3, 5, 16, 17, 33):
            few = {word: value[:m] if word in ("x", "inner") else value for word, value in arguments.items()}
            assert torch.equal(op.triton(**few), whole[:m])


@pytest.mark.parametrize("name", list(operations()))
def test_a_realistic_size_agrees_too(name: str) -> None:
    op = operations()[name]
    arguments = op.sized(64, 1000, 4096, torch.bfloat16, "cuda").arguments
    assert op.disagreement(op.triton(**arguments), arguments) is None
