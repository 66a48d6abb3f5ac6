"""Blocks of rows: what is computed does not depend on where they are cut."""

from __future__ import annotations

import pytest
import torch

from kernels.packing import pack
from quant.core import checked
from quant.grouping import grouped, largest_of, packed_by_rows
from quant.methods.hqq import HQQ
from quant.methods.nf4 import NF
from quant.methods.uniform import Uniform
from quant.rows import CACHED, row_blocks
from tests.quant.samples import gaussian

GROUPS = (64, 3, "channel", "tensor")
SHAPES = ((1, 1), (1, 70), (7, 1), (5, 100), (37, 65))
SMALL = 130  # weights: two rows of 65, one of 100, all of 7 x 1


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for where in ("quant.rows.CACHED", "quant.nearest.PIECE"):
        monkeypatch.setattr(where, SMALL)


@pytest.mark.parametrize("shape", [(1, 1), (3, CACHED), (5, CACHED // 2), (1000, 7), (4, 3 * CACHED)])
def test_blocks_cover_every_row_once_in_order_and_hold_no_more_than_they_may(shape: tuple[int, int]) -> None:
    blocks = row_blocks(torch.empty(shape))
    rows = [i for block in blocks for i in range(shape[0])[block]]
    assert rows == list(range(shape[0]))
    assert all(len(range(shape[0])[block]) in (1, min(shape[0], CACHED // shape[1])) for block in blocks[:-1])


def test_another_device_takes_all_rows_at_once() -> None:
    assert row_blocks(torch.empty(9, CACHED, device="meta")) == [slice(0, 9)]


def methods(group: int | str) -> list[Uniform | HQQ | NF]:
    made: list[Uniform | HQQ | NF] = [Uniform(4, group), Uniform(3, group, zero="integer"), NF(group=group)]
    made += [Uniform(2, group, zero="float"), Uniform(8, group, scale="float32")]
    return made + ([] if group == "tensor" else [HQQ(3, group), HQQ(4, group)])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_small_blocks_store_the_same_bits(group: int | str, shape: tuple[int, int], request) -> None:
    weight = gaussian(*shape)
    whole = [method.quantize(weight).stored() for method in methods(group)]
    request.getfixturevalue("small")
    assert len(row_blocks(torch.empty(37, 65))) == 19
    for method, want in zip(methods(group), whole, strict=True):
        got = method.quantize(weight).stored()
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want), method


@pytest.mark.usefixtures("small")
def test_the_largest_and_the_smallest_magnitudes_are_found_in_every_block() -> None:
    weight = gaussian(37, 65)
    for row in (0, 1, 36):
        odd = weight.clone()
        odd[row, 3], odd[row, 5] = 2.0**-101, float("nan")
        with pytest.raises(ValueError, match=rf"weight is not finite: nan at \[{row}, 5\]"):
            checked(odd)
        odd[row, 5] = 2.0**101
        with pytest.raises(ValueError, match=r"exceeds 2\*\*100"):
            checked(odd)
        odd[row, 5] = 1.0
        assert checked(odd)[row, 3] == 0
        assert torch.equal(checked(odd)[row, 4:], odd[row, 4:])


def test_the_largest_magnitude_is_that_of_the_absolute_values() -> None:
    cells = grouped(gaussian(8, 100), 64)
    assert torch.equal(largest_of(cells), cells.abs().amax(-1))
    assert torch.equal(largest_of(-cells.abs()), cells.abs().amax(-1))
    assert not largest_of(torch.full((2, 3), -0.0)).signbit().any()


@pytest.mark.usefixtures("small")
def test_codes_are_packed_row_by_row() -> None:
    codes = torch.randint(0, 8, (37, 65), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(packed_by_rows(codes.float(), 3, lambda rows: codes[rows]), pack(codes, 3))
