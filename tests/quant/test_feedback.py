"""Error feedback: the closed form against brute force, the loss it promises, and inputs that are hard to factor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant.feedback import Feedback, check_feedback
from tests.quant.samples import gaussian, inputs


def moment(k: int, rows: int | None = None) -> Tensor:
    x = inputs(rows or 4 * k, k)
    return x.T @ x / len(x)


def loss(error: Tensor, h: Tensor) -> Tensor:
    """e H e^T of every row of `error` [n, k]."""
    e = error.double()
    return ((e @ h.double()) * e).sum(1)


def by_least_squares(weight: Tensor, h: Tensor, order: list[int], choose) -> Tensor:
    """Settle columns in `order`, moving the others each time to the place of least loss; one row at a time."""
    root = torch.linalg.cholesky(h.double()).T  # e H e^T = |root e|**2
    out = torch.empty_like(weight, dtype=torch.float64)
    for r, w in enumerate(weight.double()):
        settled = torch.zeros_like(w)
        now = w.clone()
        for i, column in enumerate(order):
            settled[column] = choose(column, now[column : column + 1].float()).double()
            done, free = order[: i + 1], order[i + 1 :]
            if free:
                # the error of the settled columns is given, that of the free ones is least squares
                given = root[:, done] @ (w[done] - settled[done])
                moved = torch.linalg.lstsq(root[:, free], -given[:, None]).solution[:, 0]
                now[free] = w[free] - moved
        out[r] = settled
    return out


@pytest.mark.parametrize("k", [2, 3, 7])
@pytest.mark.parametrize("act_order", [False, True])
def test_every_step_leaves_the_free_columns_at_their_optimum(k, act_order):
    w, h = gaussian(5, k) * 20, moment(k)
    feedback = Feedback.of(h, damp=0.0, act_order=act_order)
    order = feedback.order.tolist()
    assert order == (h.diagonal().argsort(descending=True).tolist() if act_order else list(range(k)))
    got = feedback.sweep(w, lambda column, x: x.round(), block=2)
    torch.testing.assert_close(got.double(), by_least_squares(w, h, order, lambda _, x: x.round()))


def test_one_column_that_is_off_costs_what_its_pivot_says():
    """Settling column i at q, with all behind it free, costs (w_i - q)**2 / U_ii**2; nothing before it moves."""
    w, h = gaussian(6, 40), moment(40)
    feedback = Feedback.of(h, damp=0.0)
    for column in (0, 17, 39):
        left = feedback.sweep(w, lambda i, x, c=column: torch.zeros_like(x) if i == c else x, block=16)
        want = w[:, column].double().square() / feedback.cost[column]
        torch.testing.assert_close(loss(left - w, h), want, rtol=1e-4, atol=0)
        assert torch.equal(left[:, :column], w[:, :column])


def test_the_loss_is_the_sum_of_the_squared_errors_over_their_pivots():
    """With a step s and no clipping its expectation is s**2 / 12 sum 1 / U_ii**2, whatever the inputs are."""
    w, h, step = gaussian(4000, 48) * 20, moment(48), 0.1
    feedback = Feedback.of(h, damp=0.0)
    got = feedback.sweep(w, lambda _, x: (x / step).round() * step)
    want = step**2 / 12 * (1 / feedback.cost.double()).sum()
    # the mean over 4000 rows of 48 columns of unequal pivots; a single uniform square has relative deviation 0.9
    assert float(loss(got - w, h).mean()) == pytest.approx(float(want), rel=0.02)


@pytest.mark.parametrize("block", [1, 5, 48, 200])
def test_the_block_does_not_matter(block):
    w, h = gaussian(8, 48), moment(48)
    feedback = Feedback.of(h)
    halve = lambda _, x: x / 2  # noqa: E731  continuous, so rounding of float32 is not amplified
    torch.testing.assert_close(feedback.sweep(w, halve, block), feedback.sweep(w, halve, 128))


def test_dead_inputs_settle_their_weights_from_zero_and_touch_nothing_else():
    h = moment(12)
    h[3], h[:, 3] = 0, 0
    w = gaussian(4, 12)
    feedback = Feedback.of(h)
    assert feedback.dead.nonzero().tolist() == [[3]]
    got = feedback.sweep(w, lambda _, x: (x * 50).round() / 50)
    assert not got[:, 3].any()
    rest = [i for i in range(12) if i != 3]
    alone = Feedback.of(h[rest][:, rest]).sweep(w[:, rest].contiguous(), lambda _, x: (x * 50).round() / 50)
    torch.testing.assert_close(got[:, rest], alone)


def test_singular_indefinite_and_empty_second_moments_still_give_a_finite_feedback():
    few = moment(40, rows=8)
    indefinite = moment(10)
    indefinite.diagonal()[4] = -1e-3 * indefinite.diagonal().mean()
    beyond = torch.tensor([[1.0, 1.5], [1.5, 1.0]])  # no mean of x x^T: eigenvalue -1/2
    for h in (few, indefinite, beyond, torch.zeros(5, 5)):
        for damp in (0.0, 0.01):
            w = gaussian(3, len(h))
            feedback = Feedback.of(h, damp)
            assert feedback.upper.isfinite().all()
            assert feedback.sweep(w, lambda _, x: x.sign()).isfinite().all()


def test_the_scale_of_the_inputs_does_not_matter():
    w, h = gaussian(4, 24), moment(24)
    h[5], h[:, 5] = 0, 0
    want = Feedback.of(h).sweep(w, lambda _, x: x / 2)
    torch.testing.assert_close(Feedback.of(h * 1e-6).sweep(w, lambda _, x: x / 2), want)


def test_look_sees_what_earlier_columns_left_before_each_run():
    w, h = gaussian(4, 10), moment(10)
    feedback = Feedback.of(h)
    seen, settled = {}, {}

    def look(first, now):
        seen[first] = now.clone()

    def choose(column, x):
        settled[column] = x.clone()
        return x.round()

    feedback.sweep(w, choose, block=8, look=look, every=4)
    assert {first: len(now) for first, now in seen.items()} == {0: 4, 4: 4, 8: 2}
    for first, now in seen.items():
        assert torch.equal(now[0], settled[first])
    assert not torch.equal(seen[4], w.T[4:8])


def test_settings_are_checked():
    for damp, block in ((-0.1, 128), (float("inf"), 128), (0.01, 0)):
        with pytest.raises(ValueError):
            check_feedback(damp, block)
