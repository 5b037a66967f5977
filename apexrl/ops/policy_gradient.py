"""The deterministic policy gradient (Silver et al. 2014) with clipped action gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch


def action_gradients(
    value: Callable[[torch.Tensor], torch.Tensor], actions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values q(a_b) [B] and their gradients u [B, A] at ``actions`` [B, A], both detached.

    ``value`` maps actions [B, A] to values [B], each row by itself. No gradient reaches its parameters.
    """
    with torch.enable_grad():
        at = actions.detach().requires_grad_()
        values = value(at)
        (gradients,) = torch.autograd.grad(values.sum(), at)
    return values.detach(), gradients


def deterministic_policy_losses(
    actions: torch.Tensor, gradients: torch.Tensor, max_abs_gradient: float
) -> torch.Tensor:
    r"""Losses [B] whose gradient with respect to ``actions`` is -clip(u) exactly: descending them ascends the value.

    .. math:: \tfrac12 \lVert a - \mathrm{stop}(a + \mathrm{clip}(u, -c, c)) \rVert^2

    Args:
        actions: [B, A] of the policy, differentiable.
        gradients: [B, A] u of :func:`action_gradients`.
        max_abs_gradient: c, element by element (Ape-X DPG: 1); 0 = no clipping.
    """
    step = gradients.clamp(-max_abs_gradient, max_abs_gradient) if max_abs_gradient > 0.0 else gradients
    return 0.5 * (actions - (actions + step).detach()).square().sum(dim=1)
