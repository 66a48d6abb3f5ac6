"""What the gate times on the CPU: results that are checked, and inputs and workspaces new in every block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.gate.cases import cpu_cases, fresh, relative_error
from bench.gate.load import loaded
from bench.gate.trees import working

ROOT = Path(__file__).resolve().parents[2]


def test_every_case_of_the_project_computes_what_it_should(tmp_path: Path):
    """Wrong results are found by the cases' own checks: of a product, of a quantized weight, of packed codes."""
    chosen = [case for case in cpu_cases() if "kmeans" not in case.name]  # it would be compiled first
    with loaded([working(ROOT, tmp_path)]) as (side,):
        assert not [(case.name, text) for case in chosen if (text := case.build(side).wrong())]
        packing = side.module("kernels.packing")
        true = packing.pack
        packing.pack = lambda codes, bits: true(codes, bits).flip(-1)
        (case,) = [c for c in chosen if c.name.startswith("pack/3bit")]
        assert case.build(side).wrong() == "pack at 3 bits: other bytes than those counted out"
        aten = side.module("quant.engines.aten")
        matmul = aten._Int4.matmul
        aten._Int4.matmul = lambda self, x: matmul(self, x) * 1.02
        assert "exceeds 0.01" in chosen[0].build(side).wrong()
        core = side.module("quant.core")
        affine = side.module("quant.formats.affine").Affine
        decode = affine.decode
        affine.decode = lambda self: decode(self) * 1.1
        (case,) = [c for c in chosen if c.name.startswith("quantize/uniform-int8-channel")]
        assert "exceeds 0.0095" in case.build(side).wrong()
        assert core.METHODS


def test_a_product_has_a_workspace_of_its_own_in_every_block(tmp_path: Path):
    """One that is kept lies where it lies for the whole session, worth 10 % between two copies of one code."""
    (case,) = [c for c in cpu_cases() if c.name.startswith("linear/lut/nf4-g64/float32/1x")]
    with loaded([working(ROOT, tmp_path)]) as (side,):
        kept, ready, rng = side.module("quant.engines.decode")._local, case.build(side), np.random.default_rng(0)
        ready.fresh(rng)()
        assert kept.buffers
        ready.fresh(rng)
        assert not hasattr(kept, "buffers")


def test_names_say_what_is_timed_and_are_unique():
    names = [case.name for case in cpu_cases()]
    assert len(set(names)) == len(names) >= 25
    assert all(f"/{case.m}x" in case.name for case in cpu_cases() if case.name.startswith("linear/"))


@pytest.mark.parametrize("shape", [(3, 5), (64,), (0, 4), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.complex64])
def test_a_fresh_copy_is_equal_and_begins_on_a_line_of_the_cache(shape: tuple[int, ...], dtype: torch.dtype):
    tensor = (
        torch.arange(max(1, int(np.prod(shape))), dtype=torch.float32)[: int(np.prod(shape))].reshape(shape).to(dtype)
    )
    rng = np.random.default_rng(1)
    copies = [fresh(tensor, rng) for _ in range(8)]
    assert all(torch.equal(copy, tensor) and copy.dtype == dtype for copy in copies)
    assert all((copy.data_ptr() - copy.untyped_storage().data_ptr()) % 64 == 0 for copy in copies if copy.numel())
    assert len({copy.storage_offset() for copy in copies}) > 4


def test_a_fresh_copy_keeps_its_strides():
    tensor = torch.arange(12.0).reshape(3, 4).T
    copy = fresh(tensor, np.random.default_rng(2))
    assert copy.stride() == tensor.stride() == (1, 4)
    assert torch.equal(copy, tensor)


def test_an_error_of_shape_or_of_no_number_exceeds_every_bound():
    want = torch.ones(2, 2, dtype=torch.float64)
    assert relative_error(torch.full((2, 2), 1.5), want) == pytest.approx(0.5)
    assert relative_error(torch.ones(2, 3), want) == float("inf")
    assert not relative_error(torch.full((2, 2), float("nan")), want) <= 1e9
