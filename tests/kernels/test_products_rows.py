"""Row i of a product does not depend on how many rows there are: no sum follows the tile that it is taken in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton
from triton.runtime.interpreter import ReduceOps

from kernels.aot import TARGETS, Compiled, compile_launches, is_matrix
from kernels.examples import affine_sized
from kernels.op import Op, interpreted, operations
from kernels.tuning import Launch, recorded
from tests.kernels.conftest import INTERPRETED, LOOPS

COMPILED = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1: interpreted kernels cannot be compiled"
)
GROUPS = (64, 128, "channel", 48)
RUN: dict[str, Op] = {**INTERPRETED, **{op.name: op for op in interpreted("kernels.lora").OPERATIONS}}
NAMES = ("affine_matmul", "affine_lora")


def asymmetric(name: str, m: int, n: int, k: int, dtype: torch.dtype, group: int | str = 64) -> dict[str, Any]:
    """Arguments of an affine product with zero points that are no whole numbers."""
    example = affine_sized(m, n, k, dtype, "cpu", product=True, group=group, zero=torch.float16)
    own = dict(example.arguments)
    if name == "affine_lora":
        draw = torch.Generator().manual_seed(m)
        own |= {"inner": torch.randn(m, 8, generator=draw), "b": torch.randn(n, 8, generator=draw)}
    return own


def first_rows(arguments: dict[str, Any], m: int) -> dict[str, Any]:
    return {word: value[:m] if word in ("x", "inner") else value for word, value in arguments.items()}


@pytest.fixture
def sums_follow_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over an axis of a wider tile start at its other end, as compiled ones follow the layout."""
    usual = ReduceOps.sum

    def turned(self: Any, values: Any) -> Any:
        data = values.handle.data
        if data.ndim > 1 and data.shape[-1] > 16:
            values = self.to_tensor(np.ascontiguousarray(np.flip(data, self.axis)), values.dtype)
        return usual(self, values)

    monkeypatch.setattr(ReduceOps, "sum", turned)


class TestInterpreted:
    pytestmark = LOOPS

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    @pytest.mark.parametrize("group", GROUPS)
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.usefixtures("sums_follow_the_tile")
    def test_a_row_with_zero_points_has_the_same_bits_in_every_batch(
        self, name: str, group: int | str, dtype: torch.dtype
    ) -> None:
        op, arguments = RUN[name], asymmetric(name, 33, 67, 300, dtype, group)
        whole = op.triton(**arguments)
        assert op.disagreement(whole, arguments) is None
        for m in (2, 16, 17):
            assert torch.equal(op.triton(**first_rows(arguments, m)), whole[:m])
        with interpreted("kernels.launchers").rows_alike():
            assert torch.equal(op.triton(**first_rows(arguments, 1)), whole[:1])


def every_configuration(launch: Launch, target: str) -> list[Compiled]:
    return compile_launches([(launch, config) for config in launch.kernel.configs], target)


@COMPILED
@pytest.mark.parametrize("target", ["sm_90", "sm_100"])  # the others of NVIDIA have a single one of this dtype
def test_one_matrix_instruction_serves_every_number_of_rows_and_every_configuration(target: str) -> None:
    op = operations()["affine_matmul"]
    built = [
        each
        for m in (2, 64)
        for each in every_configuration(
            recorded(op.triton, asymmetric(op.name, m, 256, 1024, torch.bfloat16))[1][0], target
        )
    ]
    used = {frozenset(word for word in each.instructions if is_matrix(word)) for each in built}
    assert len(used) == 1
    assert len(next(iter(used))) == 1


@COMPILED
@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
@pytest.mark.parametrize("group", [64, 128, "channel"])
@pytest.mark.parametrize("name", NAMES)
def test_zero_points_fit_with_many_rows(name: str, group: int | str, target: str) -> None:
    for m in (32, 64):
        arguments = asymmetric(name, m, 256, 1024, torch.bfloat16, group)
        (built,) = compile_launches(
            [(launch, launch.kernel.configs[0]) for launch in recorded(operations()[name].triton, arguments)[1][:1]],
            target,
        )
        assert built.spills == 0
        assert built.shared <= TARGETS[target].shared_limit
