"""n-step returns against hand-computed numbers and a loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apexrl.ops.returns import n_step

REWARDS = [1.0, 0.0, 2.0, -1.0, 5.0]
DISCOUNT = 0.99
RETURNS = [2.9602, 0.9999, 5.9105, 3.95, 5.0]


def windows(last_continuation: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All windows of up to 3 steps of the five-step episode; behind its end stands garbage."""
    rewards = torch.tensor([*REWARDS, 99.0, 99.0], dtype=torch.float64)
    continuations = torch.tensor([1.0, 1.0, 1.0, 1.0, last_continuation, 0.0, 0.0], dtype=torch.float64)
    lengths = torch.tensor([min(3, 5 - t) for t in range(5)])
    return rewards.unfold(0, 3, 1), continuations.unfold(0, 3, 1), lengths


def test_windows_before_a_termination_do_not_bootstrap_past_it() -> None:
    returns, discounts = n_step(*windows(last_continuation=0.0), DISCOUNT)
    torch.testing.assert_close(returns, torch.tensor(RETURNS, dtype=torch.float64))
    torch.testing.assert_close(discounts, torch.tensor([0.970299, 0.970299, 0.0, 0.0, 0.0], dtype=torch.float64))


def test_short_windows_before_a_truncation_bootstrap_with_their_own_length() -> None:
    returns, discounts = n_step(*windows(last_continuation=1.0), DISCOUNT)
    torch.testing.assert_close(returns, torch.tensor(RETURNS, dtype=torch.float64))
    expected = torch.tensor([0.970299, 0.970299, 0.970299, 0.9801, 0.99], dtype=torch.float64)
    torch.testing.assert_close(discounts, expected)


def test_rewards_behind_a_lost_life_do_not_count() -> None:
    rewards = torch.tensor([[1.0, 1.0, 1.0]])
    continuations = torch.tensor([[1, 0, 1]], dtype=torch.uint8)
    returns, discounts = n_step(rewards, continuations, torch.tensor([3]), 0.5)
    assert returns.item() == 1.5
    assert discounts.item() == 0.0


def test_nonfinite_rewards_behind_the_window_are_ignored() -> None:
    rewards = torch.tensor([[1.0, float("nan")]])
    returns, discounts = n_step(rewards, torch.tensor([[1.0, float("nan")]]), torch.tensor([1]), 0.5)
    assert (returns.item(), discounts.item()) == (1.0, 0.5)


@given(
    steps=st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=12),
    discount=st.floats(0.0, 1.0),
    data=st.data(),
)
def test_equals_the_loop_over_records(steps: list[tuple[float, bool]], discount: float, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, len(steps)))
    expected_return, expected_discount = 0.0, 1.0
    for reward, continues in steps[:length]:
        expected_return += expected_discount * reward
        expected_discount *= discount * continues
    rewards = torch.tensor([[reward for reward, _ in steps]], dtype=torch.float64)
    continuations = torch.tensor([[continues for _, continues in steps]], dtype=torch.uint8)
    returns, discounts = n_step(rewards, continuations, torch.tensor([length]), discount)
    assert returns.item() == pytest.approx(expected_return, abs=1e-9)
    assert discounts.item() == pytest.approx(expected_discount, abs=1e-12)
