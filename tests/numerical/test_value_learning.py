"""Value rescaling, targets and losses against reference numbers."""

from __future__ import annotations

import pytest
import torch

from apexrl.ops.rescaling import h, h_inverse
from apexrl.ops.value_learning import (
    bootstrapped_targets,
    double_q_values,
    huber_loss,
    q_values_of,
    squared_loss,
)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize(
    ("epsilon", "value", "expected"),
    [
        (1e-2, 0.0, 0.0),
        (1e-2, 1.0, 2**0.5 - 1 + 1e-2),
        (1e-2, -1.0, -(2**0.5 - 1 + 1e-2)),
        (1e-2, 3.0, 1.03),
        (1e-3, 1.0, 0.41521356237309515),
        (1e-3, 3.0, 1.003),
        (1e-3, -8.0, -2.008),
        (1e-3, 99.0, 9.099),
        (1e-3, 1e4, 109.00499987500625),
    ],
)
def test_h(epsilon: float, value: float, expected: float) -> None:
    assert h(scalar(value), epsilon).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("epsilon", "value", "expected"),
    [
        (1e-2, 0.5, 1.2137352575995832),
        (1e-2, -2.0, -7.5525510403034115),
        (1e-2, 10.0, 99.16672452900089),
        (1e-3, 0.5, 1.2462627648760898),
        (1e-3, -2.0, -7.952349144987128),
        (1e-3, 10.0, 117.4303227795581),
    ],
)
def test_h_inverse(epsilon: float, value: float, expected: float) -> None:
    assert h_inverse(scalar(value), epsilon).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3])
def test_h_round_trip(epsilon: float) -> None:
    values = torch.cat([-torch.logspace(4, -6, 200), torch.zeros(1), torch.logspace(-6, 4, 200)]).double()
    error = (h_inverse(h(values, epsilon), epsilon) - values).abs()
    assert bool((error <= 2e-12 * values.abs().clamp(min=1.0)).all())


@pytest.mark.parametrize(("epsilon", "rescaled", "back"), [(1e-2, 40.638584, 999.99976), (1e-3, 31.638584, 999.99854)])
def test_h_in_float32(epsilon: float, rescaled: float, back: float) -> None:
    value = h(torch.tensor([1000.0]), epsilon)
    assert value.item() == pytest.approx(rescaled, rel=1e-6)
    assert h_inverse(value, epsilon).item() == pytest.approx(back, rel=2e-6)
    small = torch.tensor([0.01])
    assert h_inverse(h(small, epsilon), epsilon).item() == pytest.approx(0.01, rel=2e-3)


def test_h_is_odd_and_increasing() -> None:
    values = torch.linspace(-100, 100, 1001, dtype=torch.float64)
    torch.testing.assert_close(h(-values, 1e-2), -h(values, 1e-2))
    assert bool((h(values, 1e-2).diff() > 0).all())


def test_double_q_takes_the_online_networks_action_and_the_target_networks_value() -> None:
    online = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
    target = torch.tensor([[10.0, 20.0, 30.0]], dtype=torch.float64)
    values = double_q_values(target, online)
    assert values.item() == 20.0
    assert bootstrapped_targets(scalar(2.9602), scalar(0.970299), values).item() == pytest.approx(22.36618, abs=1e-12)


def test_plain_q_takes_the_target_networks_best_value() -> None:
    target = torch.tensor([[10.0, 20.0, 30.0]], dtype=torch.float64)
    value = bootstrapped_targets(scalar(2.9602), scalar(0.970299), double_q_values(target, target))
    assert value.item() == pytest.approx(32.06917, abs=1e-12)


@pytest.mark.parametrize(("epsilon", "expected"), [(1e-3, 2.8609166431400386), (1e-2, 2.896289688240031)])
def test_rescaled_target_sums_rewards_in_real_space(epsilon: float, expected: float) -> None:
    target = bootstrapped_targets(scalar(2.9602), scalar(0.970299), scalar(2.5), epsilon)
    assert target.item() == pytest.approx(expected, rel=1e-12)


def test_a_terminated_window_does_not_look_at_its_bootstrap_value() -> None:
    assert bootstrapped_targets(scalar(0.75), scalar(0.0), scalar(123.0)).item() == 0.75


def test_losses() -> None:
    errors = torch.tensor([0.5, 1.0, -3.0])
    torch.testing.assert_close(huber_loss(errors), torch.tensor([0.125, 0.5, 2.5]))
    torch.testing.assert_close(squared_loss(errors), torch.tensor([0.125, 0.5, 4.5]))
    torch.testing.assert_close(huber_loss(errors, kappa=2.0), torch.tensor([0.125, 0.5, 4.0]))


def test_huber_gradient_is_clipped_at_kappa() -> None:
    errors = torch.tensor([0.5, -1.0, -3.0, 7.0, 0.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(huber_loss(errors).sum(), errors)
    torch.testing.assert_close(gradient, torch.tensor([0.5, -1.0, -1.0, 1.0, 0.0]))


def test_q_values_of_chosen_actions() -> None:
    q = torch.arange(6.0).reshape(2, 3)
    assert q_values_of(q, torch.tensor([2, 0])).tolist() == [2.0, 3.0]
