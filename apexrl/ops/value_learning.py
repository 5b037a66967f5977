"""Targets and losses of action-value learning. Inputs are float32; nothing here belongs under autocast."""

from __future__ import annotations

import torch

from apexrl.ops.rescaling import h, h_inverse


def q_values_of(q: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Values [B] of ``actions`` [B] int64 in ``q`` [B, A]."""
    return q.gather(1, actions[:, None]).squeeze(1)


def double_q_values(q_value: torch.Tensor, q_selector: torch.Tensor) -> torch.Tensor:
    """Bootstrap values [B] of double Q-learning (van Hasselt et al. 2016).

    One network chooses the action, another says what it is worth.

    Args:
        q_value: [B, A] of the target network.
        q_selector: [B, A] of the online network.
    """
    return q_values_of(q_value, q_selector.argmax(dim=1))


def bootstrapped_targets(
    returns: torch.Tensor, bootstrap_discounts: torch.Tensor, bootstrap_values: torch.Tensor, epsilon: float = 0.0
) -> torch.Tensor:
    """Targets y [B] = R + G v; with ``epsilon`` above 0, y = h(R + G h^-1(v)).

    Rewards are summed in real space; only the bootstrap value v lives in the space of h.

    Args:
        returns: [B] R of :func:`apexrl.ops.returns.n_step`.
        bootstrap_discounts: [B] G of the same.
        bootstrap_values: [B] v, as the network outputs it.
        epsilon: of the value rescaling h; 0 = no rescaling.
    """
    if epsilon == 0.0:
        return returns + bootstrap_discounts * bootstrap_values
    return h(returns + bootstrap_discounts * h_inverse(bootstrap_values, epsilon), epsilon)


def squared_loss(td_errors: torch.Tensor) -> torch.Tensor:
    """Half the squared error, element by element."""
    return 0.5 * td_errors.square()


def huber_loss(td_errors: torch.Tensor, kappa: float = 1.0) -> torch.Tensor:
    """Half the squared error up to ``kappa``, linear with the same slope beyond it, element by element."""
    magnitude = td_errors.abs()
    quadratic = magnitude.clamp(max=kappa)
    return 0.5 * quadratic.square() + kappa * (magnitude - quadratic)
