"""Block sparsity: the best choice of so many rectangles, exact counts and bits, blocks over the edge."""

from __future__ import annotations

import itertools

import pytest
import torch

from quant import METHODS, QuantizedLinear
from quant.formats.kept_blocks import KeptBlocks, cut, joined
from quant.methods.blocks import Blocks
from quant.methods.none import Unquantized
from quant.methods.uniform import Uniform
from tests.quant.samples import gaussian

EXACT = Unquantized("float32")


def test_no_other_choice_of_blocks_loses_less():
    w = gaussian(4, 9)
    got = Blocks(0.5, 2, 3, EXACT).quantize(w)
    lost = float((w - got.decode()).square().sum())
    norms = [float(w[r : r + 2, c : c + 3].square().sum()) for r in (0, 2) for c in (0, 3, 6)]
    assert lost == pytest.approx(min(sum(some) for some in itertools.combinations(norms, 3)), rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 50)])
def test_counts_are_exact_and_what_is_kept_is_kept_whole(share, shape):
    w = gaussian(*shape)
    stored = Blocks(share, 4, 8, EXACT).quantize(w)
    kept = stored.kept()
    assert int((~kept).sum()) == round(share * kept.numel())
    whole = kept.repeat_interleave(4, 0).repeat_interleave(8, 1)[: shape[0], : shape[1]]
    assert torch.equal(stored.decode(), torch.where(whole, w, 0))
    assert (stored.values is None) == (not kept.any())


def test_bits():
    w = gaussian(64, 128)
    assert Blocks(0.5).quantize(w).bits_per_weight == 8 + 1 / 256
    assert Blocks(0.5, 8, 8, Uniform(4, 64)).quantize(w).bits_per_weight == 4.25 / 2 + 1 / 64
    assert METHODS["blocks-50-8x8-int4-g64"].quantize(w).values.scale.shape == (64, 1)  # a block is a group


def test_of_equal_norms_the_first_go():
    got = Blocks(0.5, 1, 1, EXACT).quantize(torch.ones(2, 3)).decode()
    assert got.tolist() == [[0, 0, 0], [1, 1, 1]]


def test_a_block_is_stored_row_by_row():
    w = torch.arange(16.0).reshape(4, 4)
    assert cut(w, 2, 2)[1, 0].tolist() == [8, 9, 12, 13]
    assert torch.equal(joined(cut(w[:3, :3], 2, 2), (3, 3), 2, 2), w[:3, :3])


def test_a_layer_of_it_multiplies_and_passes_gradients():
    q = Blocks(0.5, 3, 5, Uniform(4, 64)).quantize(gaussian(10, 12))
    x = gaussian(4, 12, seed=1).requires_grad_()
    y = QuantizedLinear(q, None)(x)
    torch.testing.assert_close(y, x @ q.decode().T)
    y.sum().backward()
    torch.testing.assert_close(x.grad, q.decode().sum(0).expand(4, 12))


def test_a_mask_that_disagrees_with_its_values_is_refused():
    q = Blocks(0.5, 2, 2).quantize(gaussian(4, 4))
    with pytest.raises(ValueError, match="the mask keeps 2 blocks of 4 weights"):
        KeptBlocks((4, 4), torch.float32, q.mask, None, 2, 2)
    for make in (lambda: Blocks(1.2), lambda: Blocks(0.5, 0), lambda: Blocks(0.5, 4, -1)):
        with pytest.raises(ValueError):
            make()
