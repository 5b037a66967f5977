"""The deterministic policy gradient: the gradient of its surrogate, clipping, and that the critic stays out of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apexrl.ops.policy_gradient import action_gradients, deterministic_policy_losses


def quadratic(scale: torch.Tensor) -> torch.Tensor:
    """Values - sum scale (a - 1)^2 of actions."""

    def value(actions: torch.Tensor) -> torch.Tensor:
        return -(scale * (actions - 1.0).square()).sum(dim=1)

    return value  # type: ignore[return-value]


def test_values_and_gradients_are_those_of_each_row() -> None:
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    actions = torch.tensor([[0.0, 0.5], [1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    values, gradients = action_gradients(quadratic(scale), actions)  # type: ignore[arg-type]
    np.testing.assert_allclose(values, [-1.0, -8.0])
    np.testing.assert_allclose(gradients, [[1.0, 2.0], [0.0, 8.0]])
    assert not values.requires_grad
    assert not gradients.requires_grad
    assert scale.grad is None
    assert actions.grad is None


def test_gradients_are_found_inside_no_grad_too() -> None:
    with torch.no_grad():
        _, gradients = action_gradients(lambda actions: actions.square().sum(dim=1), torch.full((1, 2), 3.0))
    np.testing.assert_allclose(gradients, [[6.0, 6.0]])


@pytest.mark.parametrize(
    ("bound", "expected"), [(1.0, [0.3, -1.0, 1.0]), (0.5, [0.3, -0.5, 0.5]), (0.0, [0.3, -2.0, 1.5])]
)
def test_the_loss_descends_along_clipped_action_gradients(bound: float, expected: list[float]) -> None:
    """Golden: clip [0.3, -2, 1.5] to [0.3, -1, 1]."""
    actions = torch.tensor([[0.1, 0.2, -0.7]], dtype=torch.float64, requires_grad=True)
    gradients = torch.tensor([[0.3, -2.0, 1.5]], dtype=torch.float64)
    losses = deterministic_policy_losses(actions, gradients, bound)
    losses.sum().backward()
    assert actions.grad is not None
    np.testing.assert_allclose(actions.grad[0], [-u for u in expected], rtol=0, atol=1e-12)
    assert losses.item() == pytest.approx(0.5 * sum(u * u for u in expected), abs=1e-12)
