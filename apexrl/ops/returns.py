"""Multi-step returns of windows that end early."""

from __future__ import annotations

import torch


def n_step(
    rewards: torch.Tensor, continuations: torch.Tensor, lengths: torch.Tensor, discount: float
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return of each window and the factor of its bootstrap value.

    .. math:: R = \sum_{j<k} \Big(\prod_{i<j} \gamma d_{i+1}\Big) r_{j+1}, \qquad G = \prod_{i<k} \gamma d_{i+1}

    for a window of k steps. G alone says what the bootstrap counts for: 0 behind a termination, gamma^k for the short
    windows before a truncation. What stands behind step k is ignored.

    Args:
        rewards: [B, T] floating; r_{t+1} .. r_{t+T}.
        continuations: [B, T], any dtype; 0 after termination or life loss, else 1.
        lengths: [B] int64 k in [1, T].
        discount: gamma per step.

    Returns:
        R [B] and G [B], of the dtype of ``rewards``.
    """
    steps = torch.arange(rewards.shape[1], device=rewards.device)
    inside = steps < lengths[:, None]
    factors = torch.where(inside, discount * continuations.to(rewards.dtype), torch.ones_like(rewards))
    products = factors.cumprod(dim=1)
    before = torch.cat([torch.ones_like(products[:, :1]), products[:, :-1]], dim=1)
    returns = torch.where(inside, before * rewards, torch.zeros_like(rewards)).sum(dim=1)
    return returns, products[:, -1]
