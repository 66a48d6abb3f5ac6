"""Starts over every registered quantizer: what the adapter takes of the error is what the best one must take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant import METHODS, Calibration
from quant.init import INITS
from tests.quant.samples import fitted, gaussian

N, K, RANK = 24, 128, 4


def frobenius(e: Tensor, known: Calibration) -> float:
    return float(e.square().sum())


def of_the_outputs(e: Tensor, known: Calibration) -> float:
    """E |e x|^2."""
    return float((e @ known.second_moment.double() @ e.T).trace())  # type: ignore[union-attr]


def where_the_loss_feels_it(e: Tensor, known: Calibration) -> float:
    """Rows and columns weighed by the means of the Fisher information in them."""
    f = known.fisher.double()  # type: ignore[union-attr]
    return float((f.mean(1)[:, None] * f.mean(0) * e.square()).sum())


ERRORS = {"loftq": frobenius, "eora": of_the_outputs, "lq": where_the_loss_feels_it}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_base_and_adapter_leave_less_than_the_base_alone_by_the_share_of_the_rank(method: str) -> None:
    """The best matrix of rank r has at least r of the n equal shares of a squared error of rank n <= k.

    `plain` and `qpissa` promise no such thing: one corrects nothing, the other moves the principal part of the weight.
    """
    weight = gaussian(N, K)
    quantizer, known = fitted(METHODS[method], weight)
    base = quantizer.quantize(weight, known).decode()
    for name, error in ERRORS.items():
        start = INITS[name](weight, quantizer, known, RANK, 0)
        alone = error((weight - base).double(), known)
        left = error(weight.double() - start.base.decode().double() - start.B.double() @ start.A.double(), known)
        assert left <= (1 - RANK / N) * alone, name
        assert (left < alone) == (method != "fp32"), name  # nothing else is without an error
        assert name != "eora" or torch.equal(start.base.decode(), base)  # its one round leaves the base as it is
