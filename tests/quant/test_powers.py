"""Powers of two: the published tables and their best error on a Gaussian."""

import numpy as np
import pytest
import torch

from quant.methods.powers import AdditivePowerOfTwo, PowerOfTwo

W = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))


def table(method) -> list[float]:
    return method.quantize(torch.ones(1, 1)).levels[0].tolist()


def test_tables():
    pot = table(PowerOfTwo(4))
    assert pot[7:] == [0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    apot = table(AdditivePowerOfTwo(4))
    assert apot[7:] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1], abs=1e-7)  # float32
    for levels in (pot, apot):
        assert levels == [-v for v in reversed(levels)]
    assert table(AdditivePowerOfTwo(3)) == table(PowerOfTwo(3))
    assert len(table(AdditivePowerOfTwo(5))) == 31


@pytest.mark.parametrize(("kind", "want"), [(PowerOfTwo, 0.037687), (AdditivePowerOfTwo, 0.012118)])
def test_best_tensor_scale_on_a_gaussian(kind, want):
    largest = float(W.abs().max())
    clips = [s / largest for s in np.arange(2.0, 4.6, 0.05)]
    errors = [float((kind(4, "tensor", "float32", c).quantize(W).decode() - W).square().mean()) for c in clips]
    assert min(errors) == pytest.approx(want, rel=6e-3)  # 1 M samples
    if kind is AdditivePowerOfTwo:
        assert clips[int(np.argmin(errors))] * largest == pytest.approx(2.63, abs=0.08)


def test_settings_are_checked():
    for make in (lambda: PowerOfTwo(6), lambda: AdditivePowerOfTwo(2), lambda: PowerOfTwo(1)):
        with pytest.raises(ValueError, match="bits"):
            make()
    for clip in (0.0, 1.5):
        with pytest.raises(ValueError, match="clip"):
            PowerOfTwo(clip=clip)
